"""Run by test_page.py in a subprocess that can import Playwright: the page as a visitor sees it.

Drives a headless Chromium through the page at URL with the image at PATH and the two pages of a PDF, and prints what it found as JSON.
"""

import json
import sys
import tempfile

from playwright.sync_api import sync_playwright

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
PHONE = {"width": 390, "height": 844}
# what a picture may make a model say; <IMG is not the model's own <img>
HOSTILE = "<IMG SRC=http://127.0.0.1:9/a.png><details><b>x</b></details> $$\\frac{1}{2}$$ [a](http://127.0.0.1:9/) ${1+1} {{1}} &amp;"
TIMEOUT = 60_000  # ms, for busy machines


def is_refusal(response) -> bool:
    """Whether a route was refused. An event that is cancelled before Gradio's page knows its number does not count:
    its own server then answers 422 to the empty number, which our server never does."""
    unnumbered = response.status == 422 and response.url.endswith(("/cancel", "/reset"))
    return response.status >= 400 and not unnumbered


def visit(page, url: str, path: str) -> dict:
    requests, refused = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("response", lambda response: refused.append(response.url) if is_refusal(response) else None)
    page.goto(url)
    page.click("#sample-1")
    page.wait_for_selector("#tiles .ix-card img")
    samples = {"heading": page.inner_text("h1"), "sample": page.inner_text("#tiles .ix-note")}
    page.goto(url)
    page.set_input_files("#image input[type=file]", path)
    page.wait_for_selector("#tiles .ix-card img")
    found = samples | {"title": page.title(), "cards": page.locator("#tiles .ix-card").all_inner_texts()}

    # every state of the answer that the page shows
    page.evaluate(
        """() => { window.states = new Set(); new MutationObserver(() => {
            const bot = document.querySelector('#chat .bot'); if (bot) window.states.add(bot.innerText); })
            .observe(document.querySelector('#chat'), {subtree: true, childList: true, characterData: true}); }"""
    )
    page.click("#ask")
    page.wait_for_selector("#took .ix-note")
    found["took"] = page.inner_text("#took")
    found["answer"] = page.inner_text("#chat .bot .message, #chat .bot")
    found["states"] = page.evaluate("window.states.size")

    page.fill("#max-patches input[type=number]", "1")
    page.press("#max-patches input[type=number]", "Enter")
    page.wait_for_function("document.querySelector('#tiles').innerText.match(/1 \\(1 × 1\\)/g)?.length == 3")

    page.click("#new")
    page.fill("#question textarea", HOSTILE)
    page.click("#ask")
    page.wait_for_selector("#took .ix-note")
    found["hostile text"] = page.inner_text("#chat .user .message-content")

    page.fill("#question textarea", "What is <img>?")
    page.click("#ask")
    found["error"] = page.locator(".toast-body").first.inner_text()

    page.get_by_role("tab", name="Compare").click()
    page.click("#compare")
    page.wait_for_function("""() => { const table = document.querySelector('#comparison');
        return table.innerText.includes('seconds') && !table.innerText.includes('…'); }""")
    found["comparison"] = page.inner_text("#comparison")
    found["compared"] = [page.input_value(f"#answer-{name} textarea") for name in ("A", "B")]

    page.get_by_role("tab", name="Attention").click()
    page.click("#look")
    page.wait_for_selector("#attention img")
    page.set_viewport_size(PHONE)
    found["width on a phone"] = page.evaluate("document.documentElement.scrollWidth")
    found["requests elsewhere"] = [each for each in requests if not each.startswith((url, "data:", "blob:"))]
    found["refused"] = refused
    found["blocked"] = page.evaluate(
        """() => new Promise(done => { document.addEventListener('securitypolicyviolation',
            event => done([event.effectiveDirective, event.blockedURI])); new Image().src = 'http://127.0.0.1:9/a.png'; })"""
    )
    return found


def ask_about_second_page(page, url: str, path: str) -> dict:
    page.goto(url)
    page.set_input_files("input[type=file][accept='.pdf']", path)
    page.wait_for_selector("#tiles .ix-card img")
    page.evaluate("window.first = document.querySelector('#tiles').innerHTML")
    page.fill("#pdf-page input", "2")
    page.wait_for_function(
        "document.querySelector('#tiles .ix-card') && document.querySelector('#tiles').innerHTML != first"
    )
    found = page.evaluate(
        """() => { const image = document.querySelector('#image img'), {naturalWidth: width, naturalHeight: height} = image;
            const drawing = Object.assign(document.createElement('canvas'), {width, height}).getContext('2d');
            drawing.drawImage(image, 0, 0);
            return [width, height, ...drawing.getImageData(width / 2, height / 2, 1, 1).data.slice(0, 3)]; }"""
    )
    page.click("#ask")
    page.wait_for_selector("#took .ix-note")
    return {"second page": found, "answer about it": page.inner_text("#chat .bot .message, #chat .bot")}


with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
    context = playwright.chromium.launch_persistent_context(
        profile, executable_path="/usr/bin/chromium", headless=True, args=[*ARGUMENTS]
    )
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    url, image, pdf = sys.argv[1:]
    print(json.dumps(ask_about_second_page(page, url, pdf) | visit(page, url, image)))
    context.close()
