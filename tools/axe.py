"""Ask axe-core, the accessibility checker of Deque, about pages of qhost in headless Chromium.

    npm install --no-save axe-core
    python tools/axe.py node_modules/axe-core/axe.min.js qhost-out/*/report.html

Each page is looked at 400 px wide in the dark and 1600 px wide in the light, with every section
open. Exit code 1 when there is a violation. The tests have checks of their own for the same rules
(tests/host/page_checks.js), so that they need nothing but Chromium.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chromium import chromium, find_chromium

VIEWS = ((400, True), (1600, False))
RUN = """axe.run(document, { resultTypes: ["violations"] }).then((r) => ({
  passed: r.passes.length,
  violations: r.violations.map((v) =>
    `${v.id} (${v.impact}): ${v.help}; ${v.nodes.length} x: ${v.nodes[0].html.slice(0, 160)}`),
}))"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("axe", type=Path, help="axe.min.js")
    parser.add_argument("pages", type=Path, nargs="+")
    options = parser.parse_args()
    executable = find_chromium()
    if executable is None:
        print("no chromium")
        return 1
    failed = False
    with chromium(executable) as browser:
        for path in options.pages:
            for width, dark in VIEWS:
                page = browser.page()
                page.view(width, dark=dark)
                page.open(path)
                page.draw_all()
                page.evaluate(options.axe.read_text(encoding="utf-8"))
                found = page.evaluate(RUN)
                page.close()
                theme = "dark" if dark else "light"
                count = len(found["violations"])
                print(
                    f"{path} {width} px {theme}: {found['passed']} rules passed, {count} violated"
                )
                for violation in found["violations"]:
                    print(f"  {violation}")
                    failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
