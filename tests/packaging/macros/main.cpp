// Macros that system headers and engines define before they include the library, and which they still have afterwards.
#define require(condition) broken(condition
#define near
#define far
#define check(x) broken(x
#define small char
#define A broken(
#define B broken(
#define C broken(
#define D broken(
#define E broken(
#define F broken(
#define G broken(
#define H broken(
#define I broken(
#define J broken(
#define K broken(
#define L broken(
#define M broken(
#define N broken(
#define O broken(
#define P broken(
#define Q broken(
#define R broken(
#define S broken(
#define T broken(
#define U broken(
#define V broken(
#define W broken(
#define X broken(
#define Y broken(
#define Z broken(
#define a broken(
#define b broken(
#define c broken(
#define d broken(
#define e broken(
#define f broken(
#define g broken(
#define h broken(
#define i broken(
#define j broken(
#define k broken(
#define l broken(
#define m broken(
#define n broken(
#define o broken(
#define p broken(
#define q broken(
#define r broken(
#define s broken(
#define t broken(
#define u broken(
#define v broken(
#define w broken(
#define x broken(
#define y broken(
#define z broken(

#include <switchyard/device.hpp>
#include <switchyard/kernels.hpp>
#include <switchyard/switchyard.hpp>

#if !defined(require) || !defined(near) || !defined(far) || !defined(check) || !defined(small)
#error "the library keeps macros of others to itself"
#endif
#if !defined(E) || !defined(T) || !defined(k)
#error "the library keeps macros of others to itself"
#endif
#undef A
#undef B
#undef C
#undef D
#undef E
#undef F
#undef G
#undef H
#undef I
#undef J
#undef K
#undef L
#undef M
#undef N
#undef O
#undef P
#undef Q
#undef R
#undef S
#undef T
#undef U
#undef V
#undef W
#undef X
#undef Y
#undef Z
#undef a
#undef b
#undef c
#undef d
#undef e
#undef f
#undef g
#undef h
#undef i
#undef j
#undef k
#undef l
#undef m
#undef n
#undef o
#undef p
#undef q
#undef r
#undef s
#undef t
#undef u
#undef v
#undef w
#undef x
#undef y
#undef z

int main() {
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(6, 4);
    const auto plan =
        switchyard::route_scores(switchyard::seq, switchyard::top_k_router{}, scores, switchyard::training{});
    return plan.kept() == 12 ? 0 : 1;
}
