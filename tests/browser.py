"""A real browser, where there is one."""

import contextlib
import shutil
import tempfile

import pytest


@contextlib.contextmanager
def browser(*, logging=None):
    """A headless Chromium; the test is skipped where there is none.

    Args:
        logging: What is logged, by kind, such as {"browser": "ALL"}.
    """
    pytest.importorskip("selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not chromium:
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    if logging is not None:
        options.set_capability("goog:loggingPrefs", logging)
    with tempfile.TemporaryDirectory() as profile_folder:
        for argument in (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
            "--disable-background-networking --disable-component-update --disable-sync "
            f"--window-size=1300,850 --user-data-dir={profile_folder}"
        ).split():
            options.add_argument(argument)
        opened = webdriver.Chrome(service=Service(driver), options=options)
        try:
            yield opened
        finally:
            opened.quit()
