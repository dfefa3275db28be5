"""A report in real headless Chromium: what it looks like, what it logs and asks for, how long it takes to open.

Driven by the DevTools protocol over two pipes, so that neither a driver package nor a port is needed.
`python tests/browser.py REPORT.html FOLDER` writes pictures of the page, wide and narrow, light and dark.
"""

import argparse
import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXECUTABLE = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
         "--remote-debugging-pipe", "about:blank")
WIDE, NARROW, HEIGHT = 1440, 390, 900
PATIENCE = 60  # seconds that any single step may take on a busy machine
LOCAL = ("file:", "data:", "blob:", "about:")

# The names of the figures that can be seen but are not drawn; null while the page is not there yet. A figure that is
# drawn only when it comes near is brought near.
UNDRAWN = """(() => {
  const data = document.getElementById("figures");
  if (document.readyState !== "complete" || !data) return null;
  globalThis.figureNames ??= JSON.parse(data.textContent).figures.map(figure => figure.name);
  const undrawn = figureNames.filter(name => {
    const plot = document.getElementById(name);
    return !plot || !plot.closest("details:not([open])") && !plot.querySelector(".main-svg");
  });
  if (undrawn.length) document.getElementById(undrawn[0])?.scrollIntoView();
  return undrawn;
})()"""

# Of each figure that can be seen: its own box, its drawing's, and the texts that its edge cuts off.
BOXES = """figureNames.map(name => document.getElementById(name))
  .filter(plot => !plot.closest("details:not([open])")).map(plot => {
    const own = plot.getBoundingClientRect(), drawing = plot.querySelector(".main-svg").getBoundingClientRect();
    const cut = [...plot.querySelectorAll("text")].filter(text => {
      const box = text.getBoundingClientRect();
      return box.width && (box.left < drawing.left - 1 || box.right > drawing.right + 1 || box.top < drawing.top - 1
                           || box.bottom > drawing.bottom + 1);
    }).map(text => text.textContent);
    return {name: plot.id, left: own.left + scrollX, right: own.right + scrollX, width: own.width, height: own.height,
            drawn_width: drawing.width, drawn_height: drawing.height, cut};
  })"""

# Tables and cells that are wider than the space that shows them: a reader sees their end only after scrolling.
HIDDEN = """[...document.querySelectorAll(".scroll, .results th, .results td")]
  .filter(box => box.scrollWidth > box.clientWidth + 1)
  .map(box => ({text: box.textContent.slice(0, 60), needed: box.scrollWidth, width: box.clientWidth}))"""


class Browser:
    """A browser of its own, with a profile that is thrown away."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # The browser reads commands from file 3 and answers on file 4.
        self._process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&0 4>&1 >/dev/null 2>&1', "sh", EXECUTABLE,
             f"--user-data-dir={self._profile.name}", *FLAGS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)
        self._received, self._calls, self._pages = b"", 0, {}

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.call("Browser.close")
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._profile.cleanup()

    def page(self, width: int, dark: bool = False) -> "Page":
        """An empty page, so many pixels wide; narrow ones behave as on a phone."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._pages[session] = Page(self, session, target, width, dark)
        return self._pages[session]

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = self.send(method, session, **parameters)
        deadline = time.monotonic() + PATIENCE
        while (message := self._receive(deadline)).get("id") != number:
            if message.get("sessionId") in self._pages and "method" in message:
                self._pages[message["sessionId"]].notice(message["method"], message["params"])
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def send(self, method: str, session: str | None = None, **parameters: Any) -> int:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        self._process.stdin.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        return self._calls

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            if not select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser has not answered within {PATIENCE} s")
            chunk = os.read(self._process.stdout.fileno(), 1 << 20)
            if not chunk:
                raise ConnectionError("the browser has ended")
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)


class Page:
    """A page, and all that it complained of (`complaints`) and asked for (`requests`) since it was opened."""

    def __init__(self, browser: Browser, session: str, target: str, width: int, dark: bool) -> None:
        self._browser, self._session, self._target, self.width = browser, session, target, width
        self.complaints: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self._show(HEIGHT)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def _show(self, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=self.width, height=height, deviceScaleFactor=1,
                  mobile=self.width == NARROW)

    def notice(self, event: str, parameters: dict[str, Any]) -> None:
        """Take down what the browser reports on its own."""
        if event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(word.get("value", word.get("description", "")))
                                            for word in parameters["args"]))
        elif event == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])
        elif event == "Page.javascriptDialogOpening":  # the page would wait for an answer for ever
            self.complaints.append(f"a dialog: {parameters['message']}")
            self._browser.send("Page.handleJavaScriptDialog", self._session, accept=True)

    def open(self, path: Path) -> float:
        """Open a report. Returns the seconds from there until all figures that can be seen are drawn."""
        if error := self.call("Page.navigate", url=path.resolve().as_uri()).get("errorText"):
            raise OSError(f"{path}: {error}")
        self.wait_for_figures()
        return self.evaluate("performance.now()") / 1000

    def wait_for_figures(self, patience: float = PATIENCE) -> None:
        """Wait until all figures that can be seen are drawn."""
        deadline = time.monotonic() + patience
        while (undrawn := self.evaluate(UNDRAWN)) != []:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not drawn: {', '.join(undrawn or ['the page'])}. {' '.join(self.complaints)}")
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def click(self, element: str) -> None:
        """Click with the mouse on the middle of an element, given as a JavaScript expression."""
        x, y = self.evaluate("(element => { element.scrollIntoView({block: 'center', inline: 'center'});"
                             "const box = element.getBoundingClientRect();"
                             f"return [box.x + box.width / 2, box.y + box.height / 2]; }})({element})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, element: str, text: str) -> None:
        """Put a text in the place of what is in an input field, as typing does."""
        self.evaluate(f"(field => {{ field.focus(); field.select(); }})({element})")
        if text:
            self.call("Input.insertText", text=text)
        else:
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key="Delete", windowsVirtualKeyCode=46)

    def defects(self) -> list[str]:
        """What is wrong with the page as it is now, a sentence each."""
        foreign = [url for url in self.requests if not url.startswith(LOCAL)]
        return [*(f"it complains: {text}" for text in self.complaints), *(f"it asks for {url}" for url in foreign),
                *self._overflow(), *(defect for box in self.evaluate(BOXES) for defect in self._misfits(box)),
                *(f"it hides a part of “{box['text']}”: {box['needed']} px in {box['width']}"
                  for box in self.evaluate(HIDDEN))]

    def _overflow(self) -> list[str]:
        # Not innerWidth: on a phone that grows with a page that is too wide.
        needed = self.evaluate("document.documentElement.scrollWidth")
        return [f"it is {needed} px wide in a window of {self.width}"] if needed > self.width else []

    def _misfits(self, box: dict[str, Any]) -> list[str]:
        size, drawn = (f"{box[start + 'width']:.0f} x {box[start + 'height']:.0f}" for start in ("", "drawn_"))
        misfits = []
        if min(box["width"], box["height"], box["drawn_width"], box["drawn_height"]) < 1:
            misfits.append(f"{box['name']} has no size: {size}, drawn {drawn}")
        if box["left"] < 0 or box["right"] > self.width:
            misfits.append(f"{box['name']} lies outside: from {box['left']:.0f} to {box['right']:.0f}")
        if abs(box["drawn_width"] - box["width"]) > 1:
            misfits.append(f"{box['name']} was drawn for another size: {drawn} in {size}")
        return misfits + [f"{box['name']} cuts off “{text}”" for text in box["cut"]]

    def screenshot(self, out: Path, element: str = "document.documentElement") -> None:
        """A picture of the whole page, or of the element that a JavaScript expression gives."""
        # A tall window, since a picture beyond the window's edge is taken in one of 1 x 1 pixels for a moment.
        self._show(self.evaluate("document.documentElement.scrollHeight"))
        self.wait_for_figures()
        box = self.evaluate("(box => ({x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height}))"
                            f"(({element}).getBoundingClientRect())")
        self._capture(out, clip=box | {"scale": 1})
        self._show(HEIGHT)

    def window(self, out: Path) -> None:
        """A picture of what the window shows of the page's top."""
        self.evaluate("scrollTo(0, 0)")
        self._capture(out)

    def _capture(self, out: Path, **parameters: Any) -> None:
        out.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **parameters)["data"]))


def screenshot(page_path: Path, out_png: Path, width: int, dark: bool = False, full_page: bool = True) -> None:
    """Write a picture of a report: the whole page, or what the window shows first."""
    with Browser() as browser, browser.page(width, dark) as page:
        page.open(page_path)
        (page.screenshot if full_page else page.window)(out_png)


def pictures(page_path: Path, folder: Path, sections: bool = False, unfold: bool = False) -> None:
    """Write pictures of a report, wide and narrow, light and dark; with `sections` also one of each section."""
    folder.mkdir(parents=True, exist_ok=True)
    with Browser() as browser:
        for size, width in (("wide", WIDE), ("narrow", NARROW)):
            for tone in ("light", "dark"):
                with browser.page(width, tone == "dark") as page:
                    seconds = page.open(page_path)
                    if unfold:
                        page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
                        page.wait_for_figures()
                    page.screenshot(folder / f"{size}-{tone}.png")
                    count = page.evaluate("document.querySelectorAll('section').length") if sections else 0
                    for index in range(count):
                        page.screenshot(folder / f"{size}-{tone}-{index:02d}.png",
                                        f"document.querySelectorAll('section')[{index}]")
                    print(f"{size} {tone}: open in {seconds:.2f} s", *page.defects(), sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write pictures of a report, and say what is wrong with it.")
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sections", action="store_true", help="also a picture of each section")
    parser.add_argument("--unfold", action="store_true", help="open all that is folded away first")
    arguments = parser.parse_args()
    if EXECUTABLE is None:
        parser.exit(2, f"needs one of {', '.join(NAMES)}\n")
    pictures(arguments.report, arguments.folder, arguments.sections, arguments.unfold)


if __name__ == "__main__":
    main()
