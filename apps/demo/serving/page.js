// Select a memory slot to see its passage, a generated token to see its alternatives, a curve to see
// its values; by pointer or keyboard. Listeners are on the document, because Gradio replaces elements.
// It also redraws them in place: what is known of an element is known of its data, not of the element.
(() => {
  const facts = new WeakMap(); // by element: its data, parsed, and the attributes they came from
  const chosen = new Map(); // by the id of the block, which outlives its figure
  const scrolled = new Map(); // by block id: the scroll position of a page that is not at its end
  let focused = null; // id of the block whose figure has the focus
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  // The parsed data of an element, anew whenever one of these attributes has changed.
  function parsed(element, names, parse) {
    const source = names.map((name) => element.dataset[name]);
    const known = facts.get(element);
    if (known && known.source.every((text, n) => text === source[n])) return known.value;
    const value = parse(...source);
    facts.set(element, { source, value });
    return value;
  }

  const memoryOf = (figure) => parsed(figure, ["memory", "pieces"], (memory, pieces) =>
    Object.assign(JSON.parse(memory), { pieces: pieces.split("\x1f") }));

  const blockOf = (figure) => figure.closest(".block")?.id;

  function showSlot(figure, slot, layer) {
    const memory = memoryOf(figure);
    slot = clamp(slot, 0, memory.columns.length - 1);
    layer = clamp(layer, 0, memory.lost.length - 1);
    chosen.set(blockOf(figure), [slot, layer]);
    const row = memory.start.length > 1 ? layer : 0;
    const start = memory.start[row][slot], stop = memory.stop[row][slot];
    const text = (from, to) =>
      memory.pieces.slice(Math.max(0, from - memory.first), Math.max(0, to - memory.first)).join("");
    const strip = figure.classList.contains("strip");
    const attention = memory.attention?.[layer][slot], lost = memory.lost[layer][slot];
    const [kind] = memory.zones.find(([, , last]) => slot < last);
    const kinds = { compressed: "Compressed slot", memory: "Memory slot", segment: "Open segment" };
    const about = [
      strip ? "" : `layer ${layer + 1}`,
      stop - start > 1 ? `${stop - start} tokens` : "one token",
      `${(memory.position - stop + 1).toLocaleString("en")} tokens ago`,
      attention === undefined ? "" : `${attention.toFixed(2)}% of attention`,
      kind === "compressed" ? `${Math.round(lost * 100)}% lost` : "nothing lost",
    ];
    const caption = figure.querySelector("figcaption");
    const title = document.createElement("b");
    title.textContent = kinds[kind];
    const mark = document.createElement("mark");
    mark.textContent = text(start, stop);
    caption.replaceChildren(
      title, ` · ${about.filter(Boolean).join(" · ")}`, document.createElement("br"),
      `…${text(start - 24, start)}`, mark, `${text(stop, stop + 24)}…`,
    );
    const marker = figure.querySelector("rect.mark");
    marker.setAttribute("x", memory.columns[slot]);
  }

  function pointAt(figure, event) {
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    const memory = memoryOf(figure), view = svg.viewBox.baseVal;
    const x = ((event.clientX - box.left) / box.width) * view.width;
    const far = memory.columns.map((column) => Math.abs(column + 0.5 - x)); // zones may have room
    const slot = far.indexOf(Math.min(...far));
    const rows = view.height / 20;
    showSlot(figure, slot, Math.floor(((event.clientY - box.top) / box.height) * rows));
  }

  // The alternatives of a token. Pinned, they can be taken in its place: the text goes on from there.
  function odds(token, pinned = false) {
    let box = document.getElementById("odds");
    if (!box) {
      box = document.createElement("div");
      box.id = "odds";
      box.setAttribute("role", "status");
      // Inside the application, where the theme defines its colours.
      (document.querySelector(".gradio-container") || document.body).append(box);
    }
    document.querySelectorAll(".token.at").forEach((other) => other.classList.remove("at"));
    if (!token) return void (box.hidden = true);
    const page = token.closest("#write-page"), index = page ? tokensOf(page).indexOf(token) : -1;
    const free = index >= 0 && !document.querySelector("#write")?.disabled;
    pinned &&= free;
    box.classList.toggle("pinned", pinned);
    token.classList.add("at");
    const [probability, others] = JSON.parse(token.dataset.odds);
    const shown = (text) => text.replace(/\n/g, "⏎").replace(/^ | $/g, "␣") || "·";
    const table = document.createElement("table");
    const rows = others.some(([text]) => text === token.textContent)
      ? others : [...others, [token.textContent, probability]];
    for (const [rank, [text, share]] of rows.entries()) {
      const row = table.insertRow(), cell = row.insertCell();
      if (text === token.textContent) row.className = "taken";
      if (pinned && rank < others.length && text !== token.textContent && !text.includes("\ufffd")) {
        const button = document.createElement("button");
        button.textContent = shown(text);
        button.title = "Go on with this one";
        button.addEventListener("click", () => take(index, rank));
        cell.append(button);
      } else cell.textContent = shown(text);
      row.insertCell().textContent = share < 0.001 ? "< 0.1%" : `${(share * 100).toFixed(1)}%`;
    }
    const hint = document.createElement("small");
    hint.textContent = pinned ? "Choose one: the text goes on from there." : "Click to choose another.";
    box.replaceChildren(table, ...(free ? [hint] : []));
    box.hidden = false;
    placeOdds(box, token);
  }

  function placeOdds(box, token) {
    if (!token) return;
    const at = token.getBoundingClientRect(), size = box.getBoundingClientRect();
    const below = at.bottom + size.height + 8 < innerHeight;
    box.style.left = `${clamp(at.left, 4, innerWidth - size.width - 4)}px`;
    box.style.top = `${below ? at.bottom + 4 : Math.max(4, at.top - size.height - 4)}px`;
  }

  const tokensOf = (page) => [...page.querySelectorAll(".token")];

  // Fill a field of Gradio's as if it were typed, and submit it.
  function type(selector, text) {
    const field = document.querySelector(`${selector} textarea, ${selector} input`);
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.dispatchEvent(new KeyboardEvent("keypress", { key: "Enter", bubbles: true }));
  }

  function take(index, rank) {
    odds(null);
    type("#pick", `${index},${rank},${Date.now()}`); // the time, so that it differs from the last one
  }

  // Curves of a comparison: the nearest point by pointer, points and lines by arrow keys.
  // Of a figure: its lines, and the selected [line, point].
  const curvesOf = (figure) =>
    parsed(figure, ["curves"], (curves) => ({ lines: JSON.parse(curves), at: [0, -1] }));

  function showPoint(figure, line, point) {
    const state = curvesOf(figure);
    line = clamp(line, 0, state.lines.length - 1);
    const [name, points, colour] = state.lines[line];
    point = clamp(point, 0, points.length - 1);
    state.at = [line, point];
    const [x, y, text] = points[point];
    const mark = figure.querySelector("circle.at"), title = document.createElement("b");
    mark.setAttribute("cx", x);
    mark.setAttribute("cy", y);
    mark.setAttribute("class", `at c${colour % 7}`);
    title.textContent = name;
    figure.querySelector("figcaption").replaceChildren(title, ` · ${text}`);
    figure.classList.add("chosen");
    for (const part of figure.querySelectorAll("svg [style], .names span")) {
      part.classList.toggle("on", part.style.getPropertyValue("--c") === String(colour));
    }
  }

  function nearestPoint(figure, event) {
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let least = Infinity, found = [0, 0];
    curvesOf(figure).lines.forEach(([, points], line) => points.forEach(([a, b], point) => {
      const far = (a - x) ** 2 + (b - y) ** 2;
      if (far < least) [least, found] = [far, [line, point]];
    }));
    showPoint(figure, ...found);
  }

  document.addEventListener("pointerdown", (event) => {
    const curve = event.target.closest?.(".curves svg");
    if (curve) nearestPoint(curve.closest("figure"), event);
    const svg = event.target.closest?.(".memory svg");
    if (svg) pointAt(svg.closest("figure"), event);
    if (!event.target.closest?.("#odds")) odds(event.target.closest?.(".token"), true);
  });
  document.addEventListener("pointermove", (event) => {
    const curve = event.target.closest?.(".curves svg");
    if (curve && event.pointerType === "mouse") nearestPoint(curve.closest("figure"), event);
    const svg = event.target.closest?.(".memory svg");
    if (svg && event.pointerType === "mouse") pointAt(svg.closest("figure"), event);
  });
  document.addEventListener("pointerover", (event) => {
    const pinned = document.querySelector("#odds.pinned:not([hidden])");
    if (event.pointerType === "mouse" && !pinned) odds(event.target.closest?.(".token"));
  });
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const figure = event.target.closest?.("[data-memory]");
    const page = event.target.closest?.("[data-by-token]");
    if (event.key === "Escape") odds(null);
    const at = event.target.closest?.("[data-by-token]")?.querySelector(".token.at");
    if (event.key === "Enter" && at) {
      odds(at, true);
      document.querySelector("#odds button")?.focus();
      return event.preventDefault();
    }
    const curve = event.target.closest?.("[data-curves]");
    if (!by || !(figure || page || curve)) return;
    if (curve) {
      const [line, point] = curvesOf(curve).at;
      showPoint(curve, line + by[1], point + by[0]);
    } else if (figure) {
      const [slot, layer] = chosen.get(blockOf(figure)) || [memoryOf(figure).columns.length, 0];
      showSlot(figure, slot + by[0], layer + by[1]);
    } else {
      const tokens = tokensOf(page);
      const at = tokens.findIndex((token) => token.classList.contains("at"));
      const next = tokens[clamp(at + (by[0] || by[1]), 0, tokens.length - 1)];
      next?.scrollIntoView({ block: "nearest" });
      odds(next);
    }
    event.preventDefault();
  });
  document.addEventListener("focusin", (event) => {
    const figure = event.target.closest?.("[data-memory]");
    focused = figure ? blockOf(figure) : null;
  });
  document.addEventListener("focusout", (event) => {
    if (event.target.closest?.("[data-by-token]") && !event.relatedTarget?.closest?.("#odds")) odds(null);
    const figure = event.target.closest?.("[data-memory]");
    // A figure that Gradio replaces leaves the page; one that merely lost the focus stays.
    if (figure) setTimeout(() => { if (figure.isConnected && document.activeElement !== figure) focused = null; });
  });
  // A page of text that grows keeps its end in view, unless the visitor has scrolled up.
  function follow(page) {
    const block = blockOf(page);
    if (page.scrollHeight <= page.clientHeight) scrolled.delete(block); // a new text
    page.scrollTop = scrolled.get(block) ?? page.scrollHeight;
  }

  document.addEventListener("scroll", ({ target }) => {
    const pinned = document.querySelector("#odds.pinned:not([hidden])");
    if (pinned) placeOdds(pinned, document.querySelector(".token.at"));
    else odds(null);
    if (!target.matches?.("[data-follow]")) return;
    const atEnd = target.scrollHeight - target.clientHeight - target.scrollTop < 24;
    if (atEnd) scrolled.delete(blockOf(target));
    else scrolled.set(blockOf(target), target.scrollTop);
  }, true);
  // A second touch closes the list of sessions.
  document.addEventListener("pointerdown", ({ target }) => {
    const list = target.closest?.('[role="combobox"][aria-expanded="true"]');
    if (list) setTimeout(() => list.blur());
  });
  // Rows of sessions and snapshots, and the bar between the first token and the newest.
  document.addEventListener("click", (event) => {
    const row = event.target.closest?.("tr:has([data-submit])"), bar = event.target.closest?.(".bar svg");
    if (row) {
      const { submit, value } = row.querySelector("[data-submit]").dataset;
      type(submit, submit === "#chosen" ? value : `${value},${Date.now()}`);
    } else if (bar) {
      const box = bar.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
      const position = Math.round(clamp(share, 0, 1) * bar.parentElement.dataset.position);
      type("#pointed", `${position},${Date.now()}`);
    }
  });
  // A page in a tab that is not shown cannot be scrolled.
  document.addEventListener("click", ({ target }) => {
    if (!target.closest?.("[role=tab]")) return;
    setTimeout(() => document.querySelectorAll("[data-follow]").forEach(follow));
  });
  // Tokens move from the open segment into memory, and from there into compressed memory.
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const positions = new Map(); // by block id: the position that its strip shows

  function move(figure) {
    const memory = memoryOf(figure), block = blockOf(figure), before = positions.get(block);
    positions.set(block, memory.position);
    if (before === undefined || still.matches || !figure.classList.contains("strip")) return;
    const segments = (position) => Math.floor(position / memory.segment);
    const tokens = (segments(memory.position) - segments(before)) * memory.segment;
    if (tokens <= 0) return;
    const [compressed, kept] = memory.sizes;
    const from = { compressed: Math.min(tokens / memory.rate, compressed), memory: Math.min(tokens, kept) };
    const origin = { compressed: "var(--memory)", memory: "var(--segment)" }; // the zone they come from
    for (const [kind, columns] of Object.entries(from)) {
      const cells = figure.querySelector(`.cells.${kind}`);
      cells?.animate(
        [{ transform: `translateX(${columns}px)`, fill: origin[kind] }, { transform: "none" }],
        { duration: 350, easing: "ease-in-out" },
      );
    }
    figure.querySelector(".cells.segment")?.animate([{ opacity: 0.2 }, { opacity: 1 }], { duration: 350 });
  }

  // A figure is new, or shows other data than before.
  function drawn(figure) {
    if (figure.dataset.curves) {
      if (facts.has(figure)) showPoint(figure, ...curvesOf(figure).at);
      return;
    }
    move(figure);
    if (chosen.has(blockOf(figure))) showSlot(figure, ...chosen.get(blockOf(figure)));
    if (blockOf(figure) === focused) figure.focus({ preventScroll: true });
  }

  new MutationObserver((changes) => {
    const growing = new Set(); // pages whose contents Gradio has changed in place, or replaced
    const figures = new Set();
    for (const { target, addedNodes, type } of changes) {
      if (type === "attributes") {
        figures.add(target);
        continue;
      }
      const within = (target.closest ? target : target.parentElement)?.closest("[data-follow]");
      if (within) growing.add(within);
      for (const node of addedNodes) {
        const find = (selector) => node.matches?.(selector) ? node : node.querySelector?.(selector);
        const figure = find("[data-memory]"), page = find("[data-follow]");
        if (page) growing.add(page);
        if (figure) figures.add(figure);
      }
    }
    figures.forEach(drawn);
    growing.forEach(follow);
  }).observe(document, {
    childList: true, characterData: true, subtree: true,
    attributes: true, attributeFilter: ["data-memory", "data-pieces", "data-curves"],
  });
})();
