// The theme turns <i> icons into <svg>; widgets keep a hold on their <i>, so the picture goes inside it.
window.FontAwesomeConfig = { autoReplaceSvg: "nest" };

// Widgets typeset math through the interface of MathJax 2; the pages have MathJax 3.
document.addEventListener("DOMContentLoaded", function () {
  if (window.MathJax && MathJax.startup && !MathJax.Hub) {
    MathJax.Hub = {
      Queue: function (call) {
        MathJax.startup.promise.then(function () { return MathJax.typesetPromise([call[2]]); });
      },
    };
  }
});
