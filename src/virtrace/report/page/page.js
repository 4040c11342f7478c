"use strict";
{
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);

  // QMP texts and pictures are stored once. Texts are coloured where and when they are opened. The text is never
  // parsed: what is shown are QEMU's own digits, which JavaScript's numbers could not all hold.
  const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;
  const MOST_COLOURED = 400000;

  function coloured(text) {
    const shown = document.createDocumentFragment();
    if (!/^[{[]/.test(text) || text.length > MOST_COLOURED) {
      shown.append(text);
      return shown;
    }
    const tokens = text.match(TOKEN);
    const line = (depth) => shown.append("\n" + "  ".repeat(depth));
    let depth = 0;
    tokens.forEach((token, index) => {
      const next = tokens[index + 1];
      if (token === "{" || token === "[") {
        shown.append(token);
        depth += 1;
        if (next !== "}" && next !== "]") line(depth);
      } else if (token === "}" || token === "]") {
        depth = Math.max(depth - 1, 0);
        const before = tokens[index - 1];
        if (before !== "{" && before !== "[") line(depth);
        shown.append(token);
      } else if (token === ",") {
        shown.append(token);
        line(depth);
      } else if (token === ":") {
        shown.append(": ");
      } else {
        const part = document.createElement("span");
        part.className = token[0] !== '"' ? "value" : next === ":" ? "key" : "string";
        part.textContent = token;
        shown.append(part);
      }
    });
    return shown;
  }

  const originals = new Map();
  function textOf(stored, id) {
    if (!originals.has(stored)) originals.set(stored, one(stored).cloneNode(true));
    const text = originals.get(stored).cloneNode(true);
    const place = text.querySelector("b");
    if (place && id) place.textContent = id;
    return text.textContent;
  }

  function open(details) {
    const stored = details.matches(".text") && details.querySelector("pre");
    if (stored) stored.replaceChildren(coloured(textOf(stored.id)));
    for (const story of all(":scope > .body > .story", details)) {
      const picture = one(story.dataset.story).cloneNode(true);
      picture.removeAttribute("id");
      story.replaceWith(picture);
    }
    for (const ref of all(":scope > .ref", details)) {
      const link = ref.querySelector("a");
      if (!link) continue;
      const pre = document.createElement("pre");
      pre.append(coloured(textOf(ref.dataset.text, ref.dataset.id)));
      ref.after(pre);
      link.replaceWith(link.textContent);
    }
  }
  document.addEventListener("toggle", (event) => {
    if (event.target.open) open(event.target);
  }, true);

  // The address follows what is opened, and what the address names is opened.
  function reveal() {
    const target = location.hash && one(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const own = target.querySelector(":scope > details");
    if (own) own.open = true;
    for (let at = target.parentElement; at; at = at.parentElement) {
      if (at.matches("details")) at.open = true;
      at.hidden = false;
    }
    target.hidden = false;
    target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const summary = event.target.closest("summary");
    if (!summary || event.target.closest("a")) return;
    const stored = summary.parentElement.querySelector(":scope > pre[id], :scope > figure[id]");
    history.replaceState(null, "", "#" + (stored ?? summary.closest("[id]")).id);
  });

  // Whole texts stay closed: there are thousands of lines of them.
  const foldable = () => all(".call > details, .tree details").filter(
    (details) => !details.querySelector(":scope > .ref, :scope > pre"));
  one("all").addEventListener("click", () => foldable().forEach((each) => { each.open = true; }));
  one("none").addEventListener("click", () => foldable().forEach((each) => { each.open = false; }));

  // Search: a call stays where it, or anything in it, has the words; of its tree what has them,
  // and what leads there.
  const calls = all(".call");
  const lines = new Map();
  function line(element) {
    if (!lines.has(element)) lines.set(element, element.textContent.toLowerCase());
    return lines.get(element);
  }
  function search() {
    const query = one("search").value.trim().toLowerCase();
    const texts = new Set(all(".text > pre").filter(
      (text) => query && line(text).includes(query)).map((text) => text.id));
    const has = (element) => !query || line(element).includes(query) ||
      all(".ref", element).some((ref) => texts.has(ref.dataset.text));
    let found = 0;
    for (const call of calls) {
      const matches = has(call);
      call.hidden = !matches;
      found += matches;
      for (const node of all(".node", call)) {
        node.hidden = !has(node);
      }
      if (query && matches && found <= 20) call.querySelector("details").open = true;
    }
    one("found").textContent = query ? found + " of " + calls.length + " " + one("found").dataset.of : "";
  }
  one("search").addEventListener("input", search);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== one("search")) {
      event.preventDefault();
      one("search").focus();
    } else if (event.key === "Escape" && event.target === one("search")) {
      one("search").value = "";
      search();
    }
  });

  document.querySelector(".tools").hidden = false;
  all("details[open]").forEach(open);
  reveal();
}
