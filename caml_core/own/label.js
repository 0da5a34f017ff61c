const css = `.ask{max-width:34rem;padding:.75rem;border:1px solid #8888;border-radius:.5rem;color-scheme:light dark;
font:1rem/1.45 system-ui,sans-serif;color:light-dark(#1b2430,#e6eaf0);background:light-dark(#fff,#161b22)}
.ask img{display:block;width:min(100%,22rem);aspect-ratio:1;object-fit:contain;image-rendering:pixelated;margin:.5rem 0}
.ask button{font:inherit;color:inherit;background:light-dark(#eef1f5,#262d37);border:1px solid #8889;cursor:pointer;
border-radius:.4rem;padding:.4rem .7rem;margin:0 .4rem .4rem 0;min-height:2.75rem}
.ask :focus-visible,.ask:focus-visible{outline:3px solid light-dark(#0b57d0,#8ab4f8);outline-offset:2px}
.ask p{margin:.3rem 0}.ask progress{width:100%}.ask kbd{opacity:.8;margin-right:.35rem}`;
function render({ model, el }) {
  const make = (tag, more = {}) => Object.assign(document.createElement(tag), more);
  const box = make("div", { className: "ask", tabIndex: 0 });
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "What is the attribute of this picture?");
  box.setAttribute("data-lm-suppress-shortcuts", "true");  // Jupyter's own keys rest while this has the focus
  const [question, keys, status, note] = ["p", "div", "p", "p"].map((tag) => make(tag));
  const picture = make("img"), bar = make("progress");
  bar.setAttribute("aria-label", "answered");
  for (const live of [status, note]) live.setAttribute("aria-live", "polite");
  box.append(make("style", { textContent: css }), question, picture, keys, bar, status, note);
  const send = (message) => model.send(message);
  const button = (key, text, message) => {
    const made = make("button", { type: "button", onclick: () => send(message) });
    made.append(make("kbd", { textContent: key }), text);
    return made;
  };
  function draw() {
    const { options, done, total, y, picture: source, note: said } = model.get("state");
    const open = Boolean(source), held = keys.contains(document.activeElement);
    question.textContent = open ? `Picture ${done + 1}, labelled ${y}: which attribute?` : "All pictures are answered.";
    picture.hidden = !open;
    if (open) Object.assign(picture, { src: source, alt: `Picture ${done + 1} of ${total}, labelled ${y}` });
    const last = options.length - 1;
    const answers = options.map((o, i) => button(i < last ? i + 1 : "?", i < last ? o : "cannot tell", { answer: o }));
    keys.replaceChildren(...(open ? answers : []), button("\u232b", "undo", { undo: true }));
    Object.assign(bar, { value: done, max: total });
    status.textContent = `${done} of ${total} answered`;
    note.textContent = said;
    if (held) box.focus();
  }
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const { options, picture: open } = model.get("state"), key = event.key.toLowerCase();
    const first = options.filter((o) => o.toLowerCase().startsWith(key));
    const chosen = options.slice(0, -1)[key - 1] ?? (first.length === 1 ? first[0] : undefined);
    if (key === "backspace") send({ undo: true });
    else if (open && chosen !== undefined) send({ answer: chosen });
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  model.on("change:state", draw);
  draw();
  el.append(box);
  return () => model.off("change:state", draw);
}
export default { render };
