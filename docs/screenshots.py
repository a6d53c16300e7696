"""Take the README's pictures: the app's three pages, and a report.

Usage: python docs/screenshots.py URL REPORT.html, with `apportion ui --no-browser` serving URL.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"


def main(url: str, report: Path) -> None:
    """Fill in each page, wait for its charts, and save what is seen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": 1500})
        for path, button in (("", "Plan"), ("what-if", "Compare"), ("run", "Run")):
            tab.goto(f"{url}/{path}")
            tab.get_by_role("button", name=button, exact=True).click()
            wait_for_charts(tab)
            tab.screenshot(path=IMAGES / f"{path or 'plan'}.png")
        tab.goto(report.resolve().as_uri())
        wait_for_charts(tab)
        tab.screenshot(path=IMAGES / "report.png", full_page=True)
        browser.close()


def wait_for_charts(tab: Page) -> None:
    """Wait until the charts are drawn and nothing runs."""
    charts = tab.locator("canvas.marks, svg.marks")
    expect(charts.nth(0)).to_be_visible(timeout=180_000)
    expect(tab.get_by_text("Stop", exact=True)).to_have_count(0, timeout=180_000)
    tab.wait_for_timeout(3000)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
