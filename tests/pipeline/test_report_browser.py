"""The report of the smallest experiment as people see it: opened in a browser."""

import json
import re
import shutil

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from latentwire.data.tables import Example
from latentwire.reporting.examples import Answered, render

CATEGORIES = {
    "Overview": 1,
    "Quality": 4,
    "Compression": 2,
    "Baselines": 1,
    "Controls": 1,
    "Statistics": 2,
    "Training": 1,
    "Cost": 1,
    "Probe": 1,
    "Telepathy": 1,
    "Provenance": 1,
}
WITHOUT_DRAWING = 4
SECONDS = 20
# What opens a page, in the table of a category.
EYES = "tbody tr a:first-of-type"
HOSTILE = '</script><script>window.harmed = 1</script><img src="x" onerror="window.harmed = 2">'
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: see CONTRIBUTING.md"
)


class Browser:
    """A browser that must load nothing and complain of nothing."""

    def __init__(self, profile):
        options = ChromeOptions()
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        for flag in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "disable-dev-shm-usage",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "window-size=1500,1000",
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{flag}")
        self.driver = Chrome(options, Service(DRIVER))

    def open(self, path):
        self.driver.get(path.as_uri())

    def wait(self, condition):
        return WebDriverWait(self.driver, SECONDS).until(lambda _: condition())

    def find(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click_entry(self, text):
        """Clicks an entry of the report's menu; of its own pages, where Snakemake has one too."""
        self.click(By.XPATH, f"//a[normalize-space()='{text}']", -1)

    def click(self, kind, selector, place):
        """Clicks one of the elements found, once it is there and nothing lies over it."""

        def click_found() -> bool:
            self.driver.find_elements(kind, selector)[place].click()
            return True

        # Entries and tables slide to their places.
        moving = WebDriverWait(
            self.driver, SECONDS, ignored_exceptions=(WebDriverException, IndexError)
        )
        moving.until(lambda _: click_found())

    def errors(self):
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]

    def requests(self):
        """Addresses outside of this machine that were asked for."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [address for address in asked if re.match(r"(https?|wss?|ftp):", address)]


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.driver.quit()


def test_every_category_opens_and_every_drawing_is_drawn(browser, smoke_layout):
    browser.open(smoke_layout.report)
    num_drawings = 0
    for category, num_pages in CATEGORIES.items():
        browser.click_entry(category)
        assert len(browser.wait(lambda: browser.find(EYES))) == num_pages, category
        for place in range(num_pages):
            browser.click(By.CSS_SELECTOR, EYES, place)
            frame = browser.wait(lambda: browser.find("iframe"))[0]
            browser.driver.switch_to.frame(frame)
            title = browser.wait(lambda: browser.find("h1"))[0]
            assert title.text
            drawings = browser.find("figure svg")
            num_drawings += len(drawings)
            for drawing in drawings:
                assert drawing.size["width"] > 300
                assert drawing.size["height"] > 100
                assert drawing.text
            browser.driver.switch_to.default_content()
        browser.click_entry("Results")
    assert num_drawings == sum(CATEGORIES.values()) - WITHOUT_DRAWING
    assert browser.errors() == []
    assert browser.requests() == []


def test_tables_sort_with_what_is_missing_last(browser, smoke_layout):
    browser.open(smoke_layout.page("quality"))
    (ratio,) = [own for own in browser.find("th button") if own.text.startswith("ratio")][:1]

    def shown():
        cells = browser.find("table:first-of-type tbody tr td:nth-child(7)")
        return [float(cell.text) for cell in cells if cell.text != "–"], cells[-1].text

    for is_descending in (False, True):
        ratio.click()
        values, last = shown()
        assert len(set(values)) > 2
        assert values == sorted(values, reverse=is_descending)
        assert last == "–"
    assert browser.errors() == []


def test_a_long_table_can_be_searched(browser, smoke_layout):
    browser.open(smoke_layout.page("metrics"))
    num_rows = len(browser.find("tbody tr"))
    browser.one("input.rows").send_keys("llama prompt_tokens latent_int8 all")
    shown = [row.text for row in browser.find("tbody tr:not([hidden])")]
    assert 0 < len(shown) < num_rows / 10
    assert all("prompt_tokens" in text for text in shown)


def test_examples_are_filtered_by_method_receiver_outcome_and_words(browser, smoke_layout):
    browser.open(smoke_layout.page("examples"))

    def choose(**values):
        for name, value in values.items():
            Select(browser.one(f"#{name}")).select_by_visible_text(value)
        return len(browser.find("details"))

    assert Select(browser.one("#method")).first_selected_option.text == "latents 4x"
    assert Select(browser.one("#outcome")).first_selected_option.text.startswith("full text right")
    everything = choose(outcome="any")
    assert everything > 20
    right, wrong = (choose(receiver="llama", outcome=outcome) for outcome in ("right", "wrong"))
    assert right + wrong == everything
    assert choose(receiver="gemma", outcome="any") == 0
    assert choose(receiver="gemma", method="latents, new receiver 4x") == everything
    browser.one("#words").send_keys("no such words")
    assert browser.one("#count").text == f"0 of {everything} questions"
    browser.one("#words").clear()
    browser.one("#words").send_keys("instrument")
    details = browser.find("details")
    assert 0 < len(details) <= everything
    assert browser.wait(lambda: details[0].find_elements(By.TAG_NAME, "blockquote"))[0].text
    assert len(details[0].find_elements(By.CSS_SELECTOR, ".right, .wrong")) > 20
    assert browser.errors() == []
    assert browser.requests() == []


def test_hostile_text_stays_text(browser, tmp_path):
    examples = [Example("q0", "p0", HOSTILE, HOSTILE, [HOSTILE], "t")]
    answered = [
        Answered(method, HOSTILE, None, {"q0": (HOSTILE, float(method == "text"))})
        for method in ("text", "latent")
    ]
    page = tmp_path / "page.html"
    page.write_text(render(examples, answered, [HOSTILE]))
    browser.open(page)
    (details,) = browser.find("details")
    (passage,) = browser.wait(lambda: details.find_elements(By.TAG_NAME, "blockquote"))
    assert passage.text == HOSTILE
    assert HOSTILE in details.find_element(By.TAG_NAME, "summary").text
    assert browser.driver.execute_script("return window.harmed") is None
    assert browser.errors() == []
