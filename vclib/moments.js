// Moments of the signal in random networks of any width, computed in the page; the explorer of chapter 9 shows them.
// An expression: (values) => ({svg, text, upper, lower, fourth, lines}), with values {width, kappa, gates, variance}.
(() => {
  const DEPTH = 30; // layers
  const BLUE = "#0072B2", ORANGE = "#D55E00", GREEN = "#009E73";
  const STYLES = [
    `stroke="${BLUE}" stroke-width="2"`,
    `stroke="${ORANGE}" stroke-width="3" stroke-dasharray="7 4"`,
    `stroke="${GREEN}" stroke-width="3" stroke-dasharray="3 8" stroke-dashoffset="-7.5"`, // in the gaps of the other
  ];
  const NAMES = ["E‖a‖₂²", "E‖a‖₂⁴", "E‖a‖₄⁴"];

  // What one layer does, and what thirty of them do to a Gaussian input; as in vclib/moments.py.
  const compute = (d, kappa, p, variance) => {
    const trace = d - 1 + kappa / p, determinant = ((kappa - 3) * (d - 1)) / p; // of Q
    const upper = (trace + Math.sqrt((d - 1 - kappa / p) ** 2 + (12 * (d - 1)) / p)) / 2;
    const lower = determinant / upper; // without cancellation
    const scale = (p * variance) ** 2 / d; // p² d σ⁴
    const lines = [[], [], []];
    let square = d, z2 = d * (d + 2), z4 = 3 * d;
    for (let k = 0; k <= DEPTH; k++) {
      [square / d, z2 / (d * (d + 2)), z4 / (3 * d)].forEach((moment, i) => lines[i].push(moment));
      if (k === DEPTH) break;
      square *= p * variance;
      [z2, z4] = [
        scale * ((d + 2) * z2 + ((kappa - 3 + (1 - p) * (d + 2)) / p) * z4),
        scale * (3 * z2 + ((kappa - 3 * p) / p) * z4),
      ];
    }
    return { upper, lower, scale, lines, factor: p * variance, fourth: z2 / square ** 2 };
  };

  // Three digits; a half is rounded up, whatever the last bit says.
  const digits = (value) => {
    const shown = Number((value * (1 + 1e-12)).toPrecision(3)), size = Math.abs(shown);
    if (size === 0 || (size >= 1e-3 && size < 1e5)) return String(shown);
    return shown.toExponential().replace(/(e[+-])(\d)$/, "$10$2");
  };
  const power = (n) => `10${n < 0 ? "⁻" : ""}${[...String(Math.abs(n))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("")}`;
  const text = (x, y, words, more = "") => `<text x="${x}" y="${y}" ${more}>${words}</text>`;
  const middle = 'text-anchor="middle"', end = 'text-anchor="end"';

  // Upper panel: the moments over depth.
  const moments = (lines) => {
    const x = (k) => 74 + 9.1 * k, y = (value) => 146.75 - (190 * Math.log10(value)) / 24;
    const parts = ['<clipPath id="frame"><path d="M74 28H347V218H74Z"/></clipPath>'];
    for (let k = 0; k <= DEPTH; k += 10) {
      parts.push(`<path d="M${x(k)} 28V218" stroke="#ddd"/>${text(x(k), 232, k, middle)}`);
    }
    for (let n = -9; n <= 15; n += 3) {
      const at = y(10 ** n).toFixed(1), color = n === 0 ? "#000" : "#ddd";
      parts.push(`<path d="M74 ${at}H347" stroke="${color}"/>${text(68, Number(at) + 4, power(n), end)}`);
    }
    lines.forEach((line, i) => {
      const points = line.map((value, k) => `${x(k).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      parts.push(`<polyline clip-path="url(#frame)" fill="none" ${STYLES[i]} points="${points}"/>`);
      parts.push(`<path d="M${74 + 97 * i} 15h24" ${STYLES[i]}/>${text(103 + 97 * i, 19, NAMES[i])}`);
    });
    parts.push('<path d="M74 28V218H347" fill="none" stroke="#000"/>', text(210.5, 246, "layer k", middle));
    return `${parts.join("")}<text transform="translate(22 123) rotate(-90)" ${middle}>relative to the input</text>`;
  };

  // Lower panel: the factors per layer, one row each; an arrow where one is outside the axis.
  const factors = (rows) => {
    const x = (value) => 74 + 59 * (Math.min(Math.max(value, -0.5), 3.5) + 0.5);
    const parts = ['<path d="M74 273H310M74 295H310M74 317H310" stroke="#ddd"/>'];
    for (const tick of [0, 1, 2, 3]) {
      const color = tick === 1 ? "#000" : "#ddd";
      parts.push(`<path d="M${x(tick)} 262V328" stroke="${color}"/>${text(x(tick), 342, tick, middle)}`);
    }
    rows.forEach(([name, value, color, shape], i) => {
      const y = 273 + 22 * i, at = x(value).toFixed(1);
      const number = (Math.round(100 * value) / 100 || 0).toFixed(2);
      parts.push(text(58, y + 4, name, end), text(357, y + 4, number, end));
      parts.push(`<path transform="translate(${at} ${y})" fill="${color}" d="${shape}"/>`);
      if (value > 3.5) parts.push(`<path d="M317 ${y - 4}l5 4l-5 4z" fill="${color}"/>`);
      if (value < -0.5) parts.push(`<path d="M67 ${y - 4}l-5 4l5 4z" fill="${color}"/>`);
    });
    return `${parts.join("")}<path d="M74 328H310" stroke="#000"/>${text(192, 356, "factor per layer", middle)}`;
  };

  return ({ width, kappa, gates, variance }) => {
    const { upper, lower, scale, lines, factor, fourth } = compute(width, kappa, gates === "ReLU" ? 0.5 : 1, variance);
    const rows = [
      ["c²", factor ** 2, BLUE, "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z"],
      ["p²dσ⁴λ₊", scale * upper, ORANGE, "M-4.5 -4.5h9v9h-9z"],
      ["p²dσ⁴λ₋", scale * lower, GREEN, "M-5.5 4.5h11l-5.5 -10z"],
    ];
    const svg =
      '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 364" width="480" height="485" font-size="11"' +
      ' font-family="DejaVu Sans, Verdana, sans-serif"><rect width="360" height="364" fill="#fff"/>' +
      `${moments(lines)}${factors(rows)}</svg>`;
    return {
      svg, upper, lower, fourth, lines,
      text:
        `Width ${width}, kurtosis ${kappa}, ${gates}, dσ² = ${variance}: eigenvalues of Q ${digits(upper)} and ` +
        `${digits(lower)}. A layer multiplies the mean square by ${digits(factor)}, the fourth moment in the long ` +
        `run by ${digits(scale * upper)}; after ${DEPTH} layers the fourth moment is ${digits(fourth)} times the ` +
        "square of the mean square.",
    };
  };
})()
