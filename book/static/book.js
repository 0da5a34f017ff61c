// The theme turns <i> icons into <svg>; widgets keep a hold on their <i>, so the picture goes inside it.
window.FontAwesomeConfig = { autoReplaceSvg: "nest" };

var bookScript = document.currentScript.src;

document.addEventListener("DOMContentLoaded", function () {
  // Explorables (book/live) come in one script, which fills their places.
  if (document.querySelector("[data-explorable]")) {
    var explorables = document.createElement("script");
    explorables.src = new URL("explorables.js", bookScript).href;
    document.head.appendChild(explorables);
  }

  // The leaderboard can be sorted and filtered where the library could be fetched; else it is a plain table.
  var board = document.querySelector(".leaderboard table");
  if (board) {
    var tables = document.createElement("script");
    tables.src = new URL("vendor/simple-datatables.js", bookScript).href;
    tables.onload = function () {
      new simpleDatatables.DataTable(board, {
        perPage: 25,
        searchAnd: true,
        perPageSelect: [25, 50, ["all", -1]],
        labels: {
          placeholder: "dominoes hsfm",
          searchTitle: "Filter the rows by words",
          perPage: "rows a page",
          noRows: "nothing was found",
          noResults: "no row has these words",
          info: "{start} to {end} of {rows} rows",
        },
      });
    };
    document.head.appendChild(tables);
  }

  // A table that scrolls can be reached by the keyboard.
  function reach() {
    document.querySelectorAll(".pst-scrollable-table-container").forEach(function (box) {
      box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
    });
  }
  reach();
  window.addEventListener("resize", reach);

  // Widgets typeset math through the interface of MathJax 2; the pages have MathJax 3.
  if (window.MathJax && MathJax.startup && !MathJax.Hub) {
    MathJax.Hub = {
      Queue: function (call) {
        MathJax.startup.promise.then(function () { return MathJax.typesetPromise([call[2]]); });
      },
    };
  }

  // Buttons are called what is written on them: the theme's labels say something else to a screen reader.
  document.querySelectorAll(".search-button-field, summary[aria-label]").forEach(function (button) {
    button.removeAttribute("aria-label");
  });
  document.querySelectorAll(".theme-switch").forEach(function (icon) {
    function drop() { icon.querySelectorAll("title").forEach(function (title) { title.remove(); }); }
    icon.removeAttribute("title");
    icon.setAttribute("aria-hidden", "true");
    drop(); // its <svg> may have come before or come later
    new MutationObserver(drop).observe(icon, { childList: true, subtree: true });
  });

  document.querySelectorAll(".bd-sidebar-primary li > details > summary").forEach(function (summary) {
    summary.setAttribute("aria-label", "Pages below " + summary.closest("li").querySelector("a").textContent.trim());
  });

  // A slider of ipywidgets has its name beside it, not on it.
  document.querySelectorAll(".cell_output:has(> script[type$='widget-view+json'])").forEach(function (output) {
    new MutationObserver(function () {
      output.querySelectorAll(".noUi-handle").forEach(function (handle) {
        var label = handle.closest(".widget-inline-hbox, .widget-inline-vbox").querySelector(".widget-label");
        handle.setAttribute("aria-label", label.textContent);
      });
    }).observe(output, { childList: true, subtree: true });
  });

  // What docutils calls an entry of the bibliography is an item of a list now.
  document.querySelectorAll("[role='doc-biblioentry']").forEach(function (entry) { entry.setAttribute("role", "listitem"); });

  // A long signature is laid out by means of a list of definitions, but is none.
  document.querySelectorAll(".sig dl, .sig dl > dd").forEach(function (part) { part.setAttribute("role", "none"); });

  // Opened from the disk, a page may not read others, so the search lists its finds without their surroundings.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

  // Figures, and the theme for its scrolling boxes, look at their size when the window changes; it also changes when
  // a part is unfolded or a sidebar moves.
  var sizes = new ResizeObserver(function () { window.dispatchEvent(new Event("resize")); });
  document.querySelectorAll(".plotly-graph-div, pre").forEach(function (part) { sizes.observe(part); });
});
