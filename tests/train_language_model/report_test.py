#!/usr/bin/env python3
"""report.html in a browser: no error on the console, every picture loaded, readable at 1280 and 400 pixels, offline.

Needs Matplotlib where the program was told to find Python, and for the browser Selenium, Chromium and its driver (Debian:
python3-matplotlib python3-selenium chromium chromium-driver); without them it is skipped, with a reason.

usage: report_test.py PROGRAM
"""

import pathlib
import re
import shutil
import subprocess
import sys

from study import ROUTERS, Case, main

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
except ImportError:
    webdriver = None

# Text narrower than the page, and wide things in a box of their own that scrolls.
FAULTS = """
const faults = [];
if (document.documentElement.scrollWidth > innerWidth) faults.push('the page is ' + document.documentElement.scrollWidth);
for (const image of document.images) {
    const box = image.getBoundingClientRect();
    if (!image.complete || !image.naturalWidth) faults.push('not loaded: ' + image.alt);
    if (!image.alt) faults.push('a picture without a text');
    if (box.width < 340 || box.right > innerWidth) faults.push('a picture of ' + box.width + ' pixels: ' + image.alt);
}
for (const text of document.querySelectorAll('p, td, th, h1, h2, figcaption, summary, code')) {
    if (parseFloat(getComputedStyle(text).fontSize) < 12) faults.push('small letters: ' + text.textContent.slice(0, 40));
    const box = text.getBoundingClientRect();
    if (!text.closest('.wide') && box.right > innerWidth + 1) faults.push('cut off: ' + text.textContent.slice(0, 40));
}
return faults;
"""


class Report(Case):

    def make(self, *line, text="text"):
        _, printed = self.study(*line, text=text, report=True)
        file = self.folder / "out" / "report.html"
        self.assertEqual(file.exists(), f"Report:  {file}\n" in printed)
        if not file.exists():
            self.skipTest("the program's Python has no Matplotlib (Debian: python3-matplotlib)")
        return file

    def test_text(self):
        page = self.make("--layers", 2).read_text()
        self.assertNotRegex(page, r'(src|href)="(?!data:)')  # nothing from elsewhere
        self.assertNotIn("<script", page)
        for router in ROUTERS:
            self.assertIn(f"<td>{router}</td>", page)
            self.assertEqual(router != "dense", f"{router}, layer 1: examples of what each expert takes" in page)
        # Loss twice, dropped, unevenness; loads and bytes of five routers' two layers.
        self.assertEqual(len(re.findall("<img ", page)), 4 + 5 * 2 * 2)

    def test_dense_alone(self):
        page = self.make("--router", "dense").read_text()
        self.assertNotIn("Which expert", page)

    def test_markup_in_the_text_stays_text(self):
        (self.folder / "markup").write_bytes(b"<script>alert('&amp;')</script><b>$x_{1}$ \xff\x00\n" * 2000)
        page = self.make("--router", "switch", text="markup").read_text()
        self.assertNotIn("<script", page)
        self.assertIn("&lt;", page)

    def test_browser(self):
        browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if webdriver is None or browser is None or driver is None:
            self.skipTest("no Selenium with Chromium here (Debian: python3-selenium chromium chromium-driver)")
        file = self.make("--seeds", 2)
        options = Options()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.binary_location = browser
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        with webdriver.Chrome(service=Service(driver), options=options) as chrome:
            chrome.execute_cdp_cmd("Network.enable", {})
            chrome.execute_cdp_cmd("Network.emulateNetworkConditions",
                                   {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0})
            for width in (1280, 400):
                chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                       {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
                chrome.get(file.as_uri())
                self.assertEqual(chrome.execute_script("return innerWidth"), width)
                self.assertEqual(chrome.execute_script("return document.images.length"), 4 + 5 * 2)
                self.assertEqual(chrome.execute_script(FAULTS), [], width)
                chrome.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
                self.assertEqual(chrome.execute_script(FAULTS), [], width)
            self.assertEqual(chrome.get_log("browser"), [])

    def test_script_alone(self):
        script = pathlib.Path(__file__).resolve().parents[2] / "examples" / "train_language_model" / "report.py"
        self.make("--router", "switch")
        done = subprocess.run([sys.executable, script], capture_output=True, text=True)
        if "No module named" in done.stderr:
            self.skipTest("this Python has no Matplotlib")
        self.assertEqual(done.returncode, 2)
        self.assertIn("usage: report.py FOLDER", done.stderr)


if __name__ == "__main__":
    main()
