"""report.html in a real browser, as a desk, a phone and a printer show it: nothing overlaps, spills, runs or is fetched."""

import re

import pytest
from browser import CHROMIUM, Browser
from report_results import HOSTILE, MODELS, results

from align.evals.report.runs import write_curves
from align.evals.report.text import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")]

SCREENS = {"desk": (1280, False), "phone": (360, True), "larger phone": (390, True)}
EACH_SCREEN = pytest.mark.parametrize("screen", SCREENS)

# what stands inside what, measured in the page; half a pixel is rounding
LAYOUT = """(() => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const inside = (a, b) => a.left >= b.left - .5 && a.right <= b.right + .5
    && a.top >= b.top - .5 && a.bottom <= b.bottom + .5;
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > .5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2.5;
  const found = {figures: 0, empty: [], outside: [], overlaps: [], spills: []};
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const name = svg.querySelector("title").textContent, box = svg.getBoundingClientRect();
    found.figures += 1;
    if (box.width < 100 || box.height < 15) found.empty.push(name);
    const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    const marks = [...svg.querySelectorAll("use, rect, line")].map(m => [m.tagName, m.getBoundingClientRect()]);
    const figure = svg.closest("figure").getBoundingClientRect();
    for (const [what, rect] of [...texts, ...marks]) if (!inside(rect, figure)) found.outside.push([name, what]);
    texts.forEach(([a, first], i) => {
      for (const [b, second] of texts.slice(i + 1)) if (meet(first, second)) found.overlaps.push([name, a, b]);
      for (const use of svg.querySelectorAll("use.mark"))
        if (meet(first, use.getBoundingClientRect())) found.overlaps.push([name, a, "a mark"]);
    });
  }
  const figures = [...document.querySelectorAll("svg[role=img]")].map(svg => {
    const boxes = [svg, ...svg.querySelectorAll("text")].map(e => e.getBoundingClientRect());
    return {svg, left: Math.min(...boxes.map(b => b.left)), right: Math.max(...boxes.map(b => b.right)),
            top: Math.min(...boxes.map(b => b.top)), bottom: Math.max(...boxes.map(b => b.bottom))};
  });
  figures.forEach((a, i) => figures.slice(i + 1).forEach(b => {
    if (meet(a, b)) found.overlaps.push([a.svg.id, "two figures", a.svg.querySelector("title").textContent]);
  }));
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest(".scroll, svg, .skip, .only-read")) continue;
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + .5 || box.left < -.5)) found.spills.push(e.tagName + " " + e.className);
  }
  return found;
})()"""

# WCAG 2's contrast of every text with the first opaque background behind it: those below 4.5, or 3 for large letters
CONTRAST = """(() => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = parts(color).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if ((parts(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), poor = new Set();
  let count = 0;
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.checkVisibility() || e.closest("script, title, desc")) continue;
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    const [a, b] = [light(e.closest("svg") ? style.fill : style.color), light(behind(e))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    count += 1;
    if (contrast < (size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5))
      poor.add(`${e.tagName} ${e.getAttribute("class")} ${contrast.toFixed(2)}`);
  }
  return {count, poor: [...poor], page: behind(document.body)};
})()"""


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The made-up results, and the folder of their report."""
    folder = tmp_path_factory.mktemp("report")
    made = results(folder)
    write_report(made, folder)
    return made, folder / "report.html"


def check_layout(browser, width, figures):
    found = browser.run(LAYOUT)
    assert found.pop("figures") == figures
    assert found == {"empty": [], "outside": [], "overlaps": [], "spills": []}
    check_no_sideways(browser, width)


def check_no_sideways(browser, width):
    # a phone that must show more than its width zooms out, and its innerWidth grows
    assert browser.run("innerWidth") == width
    assert browser.run("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth") == 0


@EACH_SCREEN
def test_layout(browser, made, screen):
    width, phone = SCREENS[screen]
    browser.open(made[1], width, phone=phone)
    # trade-off, 5 categories twice and 3 attacks, margins of the three aligned models, three curves
    check_layout(browser, width, figures=1 + 5 + 5 + 3 + 3 + 3)
    assert browser.complaints() == []
    assert browser.requests() == [made[1].as_uri()]


@EACH_SCREEN
def test_layout_of_many_models_with_long_names(browser, tmp_path, screen):
    """Twelve models on four points of the trade-off; names, titles and a category are long."""
    made = results(count=30)
    methods = ("base", "nca", "dpo", "sft", "ipo", "kto", "cpo")
    names = [f"organisation/falcon-11b-very-long-name-{method}" for method in methods]
    names += ['<b>bold</b> & "quoted"', "x" * 80, "模型名字很长很长很长很长", "a", "b|c"]
    first = {model["name"]: model for model in made["models"]}
    made["models"] = [first[MODELS[i % 4]] | {"name": name} for i, name in enumerate(names)]
    for key in ("scores", "summaries", "comparisons"):
        made[key] = [
            row | {"model": name, **({"against": names[0]} if key == "comparisons" else {})}
            for i, name in enumerate(names)
            for row in made[key]
            if row["model"] == MODELS[i % 4]
        ]
    for score in made["scores"]:
        if (score["group"] or {}).get("category") == "S10":
            score["group"] = {"category": "a category with a name as long as a sentence, which no phone has room for"}
    made["records"] = {name: made["records"][MODELS[i % 4]] for i, name in enumerate(names)}
    for benchmark in made["benchmarks"]:
        benchmark["title"] += " in a version whose title is long enough to need more than a line on any phone"
    width, phone = SCREENS[screen]
    write_report(made, tmp_path)
    browser.open(tmp_path / "report.html", width, phone=phone)
    check_layout(browser, width, figures=1 + 5 + 5 + 3 + 11)
    assert browser.complaints() == []


@EACH_SCREEN
def test_layout_of_training_curves(browser, made, screen):
    folder = made[1].parent
    width, phone = SCREENS[screen]
    write_curves([str(folder / name) for name in MODELS[1:]], folder)
    browser.open(folder / "curves.html", width, phone=phone)
    check_layout(browser, width, figures=3)
    assert browser.complaints() == [] and browser.requests() == [(folder / "curves.html").as_uri()]
    assert browser.run("document.querySelector('h1').textContent") == ", ".join(MODELS[1:])


def test_tables_scroll_by_themselves(browser, made):
    browser.open(made[1], 360, phone=True)
    wide = "[...document.querySelectorAll('#scores .scroll')]"
    assert browser.run(f"{wide}.every(e => e.scrollWidth > e.clientWidth && e.clientWidth <= 360)")
    browser.run(f"{wide}[0].scrollLeft = 200")
    assert browser.run(f"{wide}[0].scrollLeft") == 200
    # the metrics' names stay in sight
    name = "document.querySelector('#scores th[scope=row]').getBoundingClientRect().left"
    assert browser.run(name) == browser.run(f"{wide}[0].getBoundingClientRect().left")
    assert browser.run("scrollX") == 0


@EACH_SCREEN
def test_a_table_that_goes_on_shows_it_and_no_cell_prints_over_another(browser, made, screen):
    width, phone = SCREENS[screen]
    browser.open(made[1], width, phone=phone)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    # the shadow stays at the edge, and its cover scrolls with the table's end
    styles = browser.run(
        "[...document.querySelectorAll('.scroll')].map(e => getComputedStyle(e))"
        ".map(s => [s.backgroundAttachment, s.backgroundImage.split('linear-gradient').length - 1])"
    )
    assert len(styles) > 10 and all(style == ["local, scroll", 2] for style in styles)
    shade = "getComputedStyle(document.documentElement).getPropertyValue('--shade')"
    assert browser.run(shade).strip() not in ("", "transparent")
    spilled = browser.run("""[...document.querySelectorAll('th, td')].filter(cell => {
      const range = document.createRange(), box = cell.getBoundingClientRect();
      range.selectNodeContents(cell);
      return [...range.getClientRects()].some(r => r.width > 1 && (r.right > box.right + .5 || r.left < box.left - .5));
    }).map(cell => cell.textContent)""")
    assert spilled == []


def test_the_page_is_named_after_suite_and_models_and_opens_without_samples(browser, made):
    browser.open(made[1], 1280)
    name = "made-up: tiny-nca, tiny-dpo and tiny-sft against tiny-base"
    assert browser.run("document.querySelector('h1').textContent") == name
    assert browser.run("document.title").startswith(name)
    assert visible(browser) == []
    # a filter is a question, and opens what it finds
    browser.run("document.querySelector('[data-show=error]').click()")
    assert len(visible(browser)) == 1


def test_the_front_runs_behind_every_mark_and_rings_show_who_is_on_it(browser, tmp_path):
    made = results(count=30)
    for row in made["scores"] + made["summaries"]:
        if row["model"] == "tiny-sft" and row.get("metric", row.get("name")) in ("global_safety", "correct", "acc"):
            row["value"] = 5.0  # dominated
    write_report(made, tmp_path)
    browser.open(tmp_path / "report.html", 390, phone=True)
    order = browser.run(
        "[...document.querySelectorAll('.tradeoff .front, .tradeoff .halo, .tradeoff .mark, .tradeoff .ring')]"
        ".map(e => e.classList[0])"
    )
    assert order[:5] == ["front", *["halo"] * 4] and order.count("mark") == 4
    ringed = browser.run("[...document.querySelectorAll('g:has(> svg > .ring) .label')].map(e => e.textContent)")
    assert ringed == ["tiny-base", "tiny-dpo"]  # of these thirty prompts dpo beats nca in both


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(browser, made, dark):
    browser.open(made[1], 1280, dark=dark)
    found = browser.run(CONTRAST)
    assert found["count"] > 1000 and found["poor"] == []
    shade = sum(map(int, re.findall(r"\d+", found["page"]))) / 3
    assert shade < 40 if dark else shade > 240


def visible(browser):
    """Ids of the samples in sight, closed benchmarks left out."""
    return browser.run(
        "[...document.querySelectorAll('article')].filter(a => a.checkVisibility()).map(a => a.dataset.id)"
    )


def test_filter(browser, made):
    """Against results.json itself: what a filter leaves has what it asks for, and no shown sample that has is hidden."""
    data, page = made
    by_id = {}
    for records in data["records"].values():
        for benchmark in records.values():
            for record in benchmark:
                by_id.setdefault(record["id"], []).append(record)

    def unsafe(records):
        return any(v.get("unsafe") for r in records for v in r.get("verdicts", {}).values())

    def first_verdict(record):
        verdict = next(iter(record.get("verdicts", {}).values()), record.get("values", {}))
        return [verdict.get(key) for key in ("unsafe", "correct", "refusal", "acc", "accuracy")]

    def changed(records):
        verdicts = [first_verdict(r) for r in records if "error" not in r]
        return any(verdict != verdicts[0] for verdict in verdicts)

    asks = {"unsafe": unsafe, "changed": changed, "error": lambda records: any("error" in r for r in records)}
    browser.open(page, 1280)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    everything = visible(browser)
    assert len(everything) == len(set(everything)) > 100
    for flag, holds in asks.items():
        browser.run(f"document.querySelector('[data-show={flag}]').click()")
        left = visible(browser)
        assert left == [i for i in everything if holds(by_id[i])] and left
        assert browser.run("document.getElementById('shown').textContent").split()[0] == str(len(left))
        assert browser.run("document.querySelector('[aria-pressed=true]').dataset.show") == flag
    browser.run("document.querySelector('[data-show=all]').click()")
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert visible(browser) == everything


def test_hostile_text_is_inert(browser, made):
    browser.open(made[1], 1280)
    assert browser.run("window.hacked") is None
    assert browser.run(
        "[document.images.length, document.scripts.length, document.querySelectorAll('b i, h1').length]"
    ) == [0, 1, 1]
    texts = browser.run("[...document.querySelectorAll('.text')].map(e => e.textContent)")
    for text in HOSTILE[:5]:
        assert text in texts, text  # as it is, nothing eaten
    assert HOSTILE[5].replace("\ud83d", "?") in texts


def test_policy_stops_scripts_and_requests(browser, made):
    """Were a text to get through the escaping after all, the page's policy would still let it neither run nor call out."""
    browser.open(made[1], 1280)
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s)"
    )
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/\" onerror=\"hacked = 2\">')"
    )
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert browser.run("window.hacked") is None
    assert len(browser.complaints()) >= 2  # the policy says what it stopped
    failed = [e["params"] for e in browser.events if e["method"] == "Network.loadingFailed"]
    assert {f.get("blockedReason") for f in failed} <= {"csp"}


def test_without_javascript(browser, made):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(made[1], 360, phone=True)
        assert browser.run("document.getElementById('filter').checkVisibility()") is False
        assert visible(browser) == []  # all are folded, and open by themselves
        assert browser.run("document.querySelectorAll('details.benchmark > summary').length") == 6
        check_no_sideways(browser, 360)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_keyboard(browser, made):
    """Tab goes to the skip link, which shows itself, then through contents and tables; every stop has an outline."""
    browser.open(made[1], 1280)
    stops = []
    for _ in range(12):
        browser.press("Tab", 9)
        stops.append(
            browser.run(
                "(e => [e.tagName, e.className || e.id, e.getBoundingClientRect().left >= 0,"
                " getComputedStyle(e).outlineStyle])(document.activeElement)"
            )
        )
    assert stops[0][:2] == ["A", "skip"]
    assert [stop[0] for stop in stops[1:6]] == ["A"] * 5
    assert stops[6][:2] == ["DIV", "scroll"]
    assert all(on_screen and outline == "solid" for _, _, on_screen, outline in stops)


def test_print(browser, made):
    """On paper: black on white even from a dark screen, no filter, nothing cut off, details of numbers open."""
    browser.open(made[1], 700, dark=True)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", media="print", features=[scheme])
    try:
        assert browser.run(CONTRAST)["page"] == "rgb(255, 255, 255)"
        assert browser.run(CONTRAST)["poor"] == []
        assert browser.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
        assert browser.run("document.getElementById('filter').checkVisibility()") is False
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=[])
    browser.open(made[1], 700)
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run("[...document.querySelectorAll('details.numbers')].every(d => d.open)")


def test_page_says_what_results_say(browser, made):
    """The numbers of the first table, read from the page, are those of results.json."""
    data, page = made
    browser.open(page, 1280)
    table = browser.run(
        "[...document.querySelectorAll('#scores tr:has(td b)')].map(r => [r.querySelector('th').firstChild.data,"
        " ...[...r.querySelectorAll('td b')].map(b => b.textContent)])"
    )
    shown = {row[0]: [float(value) for value in row[1:]] for row in table}
    titles = {
        (b["name"], m): f"{b['title']}: {a['title']}"
        for b in data["benchmarks"]
        for m, a in b["metrics"].items()
        if a["axis"]
    }
    for (benchmark, metric), title in titles.items():
        values = {
            s["model"]: s["value"]
            for s in data["scores"]
            if (s["benchmark"], s["metric"], s["group"]) == (benchmark, metric, None)
        }
        assert shown.pop(title) == pytest.approx([values[model] for model in MODELS], abs=0.0501), title
    assert list(shown) == ["global safety score (mean of the two)"]
