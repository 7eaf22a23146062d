// Optimisers on a neural chain of equal weights, computed in the page; the explorer of chapter 7 shows them.
// An expression: (values) => ({svg, text, iterations}), with values {depth, start, optimizer}.
(() => {
  const MOST = 100000; // iterations
  const DONE = 0.01; // loss
  const rules = {
    // (gradient, memory, k) => direction, as in vclib/escape.py
    "gradient descent": (g) => g,
    momentum: (g, m) => (m.m = 0.9 * (m.m ?? 0) + g),
    "RMSprop, eps = 1e-8": (g, m) => rmsprop(g, m, 1e-8),
    "RMSprop, eps = 0": (g, m) => rmsprop(g, m, 0),
    "Adam, eps = 1e-8": (g, m, k) => {
      m.m = 0.9 * (m.m ?? 0) + 0.1 * g;
      m.v = 0.999 * (m.v ?? 0) + 0.001 * g * g;
      return m.m / (1 - 0.9 ** k) / (Math.sqrt(m.v / (1 - 0.999 ** k)) + 1e-8);
    },
    "sign descent": (g) => Math.sign(g),
  };
  const rmsprop = (g, m, eps) => {
    m.v = 0.9 * (m.v ?? 0) + 0.1 * g * g;
    const size = Math.sqrt(m.v) + eps;
    return size === 0 ? 0 : g / size;
  };

  // The losses at logarithmically spaced iterations, and the first iteration whose loss is below DONE.
  const descend = (depth, start, optimizer) => {
    const plain = optimizer === "gradient descent" || optimizer === "momentum";
    const memory = {}, points = [];
    let w = start, iterations = Infinity, next = 1;
    for (let k = 0; k <= MOST; k++) {
      const product = w ** depth, loss = (1 - product) ** 2 / 2;
      if (loss < DONE && iterations === Infinity) iterations = k;
      if (k >= next || k === 0) {
        points.push([Math.max(k, 1), Number.isFinite(loss) ? Math.min(loss, 1) : 1]);
        next = Math.max(k + 1, k * 1.03);
      }
      if (k >= 10 * iterations + 20) break;
      const step = plain ? 1 / depth : 0.01 / Math.sqrt(k + 1);
      w -= step * rules[optimizer]((product - 1) * (product / w), memory, k + 1);
    }
    return { points, iterations };
  };

  return ({ depth, start, optimizer }) => {
    const gd = descend(depth, start, "gradient descent"), own = descend(depth, start, optimizer);
    const x = (k) => 52 + (295 * Math.log10(k)) / 5, y = (loss) => 192 - 300 * Math.min(loss, 0.6);
    const line = ({ points }, style) =>
      `<polyline fill="none" ${style} points="${points.map(([k, l]) => `${x(k).toFixed(1)},${y(l).toFixed(1)}`).join(" ")}"/>`;
    const text = (px, py, words, more = "") => `<text x="${px}" y="${py}" ${more}>${words}</text>`;
    const ticks = [0, 1, 2, 3, 4, 5].map((p) => {
      const at = x(10 ** p);
      const label = `10<tspan dy="-5" font-size="8">${p}</tspan>`;
      return `<path d="M${at} 12V192" stroke="#ddd"/>${text(at, 208, label, 'text-anchor="middle"')}`;
    });
    for (const loss of [0, 0.1, 0.2, 0.3, 0.4, 0.5]) {
      ticks.push(`<path d="M52 ${y(loss)}H347" stroke="#ddd"/>${text(46, y(loss) + 4, loss, 'text-anchor="end"')}`);
    }
    const svg =
      `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 238" width="480" height="317" font-size="11"` +
      ` font-family="DejaVu Sans, Verdana, sans-serif"><rect width="360" height="238" fill="#fff"/>${ticks.join("")}` +
      `<path d="M52 12V192H347" fill="none" stroke="#000"/>${line(gd, 'stroke="#0072B2" stroke-width="2"')}` +
      line(own, 'stroke="#D55E00" stroke-width="3" stroke-dasharray="7 3"') +
      text(199, 229, "iteration", 'text-anchor="middle"') +
      `<text transform="translate(14 105) rotate(-90)" text-anchor="middle">loss</text>` +
      `<path d="M205 22h24" stroke="#0072B2" stroke-width="2"/>${text(234, 26, "gradient descent")}` +
      `<path d="M205 38h24" stroke="#D55E00" stroke-width="3" stroke-dasharray="7 3"/>${text(234, 42, optimizer)}</svg>`;
    const count = (run) => (run.iterations <= MOST ? `${run.iterations} iterations` : "more than 100000 iterations");
    return {
      svg,
      iterations: own.iterations,
      text:
        `Depth ${depth}, start ${start}: to a loss of 0.01, gradient descent takes ${count(gd)}, ` +
        `${optimizer} takes ${count(own)}.`,
    };
  };
})()
