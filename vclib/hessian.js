// The whole Hessian of a small network, computed in the page; the explorer of chapter 11 shows it.
// An expression: (values) => ({svg, text, hessian, eigenvalues}), with values {depth, width, activation, law, number}.
(() => {
  const SAMPLES = 5;
  const DECADES = 6; // that the colours and the axis of the eigenvalues reach down
  const ZERO = 1e-13; // an eigenvalue this small beside the largest is zero up to rounding
  const LEVELS = 8 * DECADES; // colours
  const BLUE = "#0072B2", ORANGE = "#D55E00", GREY = "#dddddd";
  const VIRIDIS = ["fde725", "addc30", "5ec962", "28ae80", "21918c", "2c728e", "3b528b", "472d7b", "440154"];
  const dot = (a, b) => a.reduce((sum, entry, i) => sum + entry * b[i], 0);
  const times = (matrix, v) => matrix.map((row) => dot(row, v));
  const back = (matrix, v) => v.map((_, j) => v.reduce((sum, entry, i) => sum + entry * matrix[i][j], 0));
  const by = (a, b) => a.map((entry, i) => entry * b[i]);
  const range = (n) => Array.from({ length: n }, (_, k) => k);

  // Data and network. The random numbers depend on `number` alone and are used in the order x, y (a row is a sample),
  // A, W^1, ..., W^L, B, each row by row.
  const sample = (depth, d, relu, law, number) => {
    let state = 1000003 * number; // of the minimal standard generator, which is exact in doubles
    const uniform = () => (2 * (state = (16807 * state) % 2147483647)) / 2147483647 - 1; // variance 1/3
    range(10).forEach(uniform);
    const table = (rows, factor) => range(rows).map(() => range(d).map(() => factor * uniform()));
    const gain = relu ? 2 : 1, variance = law === "LeCun" ? 1 / (3 * d) : gain / d;
    const matrix = () => {
      if (law !== "orthogonal") return table(d, Math.sqrt(3 * variance));
      const rows = []; // Gram and Schmidt
      for (let row of table(d, 1)) {
        for (const other of rows) {
          const share = dot(row, other);
          row = row.map((entry, j) => entry - share * other[j]);
        }
        rows.push(row.map((entry) => entry / Math.sqrt(dot(row, row))));
      }
      return rows.map((row) => row.map((entry) => Math.sqrt(gain) * entry));
    };
    const x = table(SAMPLES, Math.sqrt(3)), y = table(SAMPLES, Math.sqrt(3));
    return { x, y, weights: range(depth + 2).map(matrix) };
  };

  // Pearlmutter's R-operator: a column is the derivative of the gradient in the direction of one weight, W^at_ij.
  const differentiate = ({ x, y, weights }, depth, d, activation) => {
    const linear = activation === "linear", relu = activation === "ReLU", size = d * d, N = depth * size;
    const phi = (a) => (linear ? a : relu ? Math.max(a, 0) : Math.tanh(a));
    const slope = (h) => (linear ? 1 : relu ? Number(h > 0) : 1 - h * h); // φ' and φ'', from h = φ(a)
    const bend = (h) => (linear || relu ? 0 : -2 * h * (1 - h * h));
    const H = range(N).map(() => new Array(N).fill(0));
    x.forEach((input, n) => {
      const h = [], e = [], delta = []; // e^k is the gradient of the loss in h^k, delta^k that in a^k
      for (let k = 0; k <= depth; k++) h.push(times(weights[k], k ? h[k - 1] : input).map(phi));
      delta[depth + 1] = times(weights[depth + 1], h[depth]).map((output, i) => (output - y[n][i]) / SAMPLES);
      for (let k = depth; k > 0; k--) {
        e[k] = back(weights[k + 1], delta[k + 1]);
        delta[k] = by(e[k], h[k].map(slope));
      }
      for (let column = 0; column < N; column++) {
        const at = 1 + Math.floor(column / size), i = Math.floor((column % size) / d), j = column % d;
        const ra = [], rh = [range(d).fill(0)]; // R of a^k, h^k, and below of e^k and delta^k
        for (let k = 1; k <= depth; k++) {
          ra[k] = times(weights[k], rh[k - 1]);
          if (k === at) ra[k][i] += h[k - 1][j];
          rh[k] = by(ra[k], h[k].map(slope));
        }
        let rdelta = times(weights[depth + 1], rh[depth]).map((output) => output / SAMPLES);
        for (let k = depth; k > 0; k--) {
          const re = back(weights[k + 1], rdelta);
          if (k + 1 === at) re[j] += delta[at][i];
          rdelta = re.map((entry, r) => entry * slope(h[k][r]) + e[k][r] * bend(h[k][r]) * ra[k][r]);
          for (let r = 0; r < d; r++) {
            for (let c = 0; c < d; c++) {
              H[(k - 1) * size + r * d + c][column] += rdelta[r] * h[k - 1][c] + delta[k][r] * rh[k - 1][c];
            }
          }
        }
      }
    });
    return H;
  };

  // Jacobi's method: rotations, each of which makes one entry off the diagonal vanish. The largest eigenvalue first.
  const diagonalize = (matrix) => {
    const H = matrix.map((row) => Float64Array.from(row)), N = H.length;
    const tiny = 1e-17 * Math.max(...H.map((row) => Math.hypot(...row)));
    for (let sweep = 0, turned = true; turned && sweep < 40; sweep++) {
      turned = false;
      for (let p = 0; p < N; p++) {
        for (let q = p + 1; q < N; q++) {
          const P = H[p], Q = H[q], off = P[q], theta = (Q[q] - P[p]) / (2 * off);
          if (Math.abs(off) <= tiny) continue;
          turned = true;
          const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
          const c = 1 / Math.hypot(t, 1), s = t * c, own = [P[p] - t * off, Q[q] + t * off];
          for (let k = 0; k < N; k++) {
            const a = P[k], b = Q[k];
            H[k][p] = P[k] = c * a - s * b;
            H[k][q] = Q[k] = s * a + c * b;
          }
          [P[p], Q[q], P[q], Q[p]] = [...own, 0, 0];
        }
      }
    }
    return H.map((row, k) => row[k]).sort((a, b) => b - a);
  };

  // Three digits; a half is rounded up, whatever the last bit says.
  const digits = (value) => {
    const shown = Number((value * (1 + 1e-12)).toPrecision(3)), size = Math.abs(shown);
    const plain = size === 0 || (size >= 1e-4 && size < 1e5);
    return (plain ? String(shown) : shown.toExponential().replace(/(e[+-])(\d)$/, "$10$2")).replaceAll("-", "−");
  };
  const power = (n) => `10${n < 0 ? "⁻" : ""}${[...String(Math.abs(n))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("")}`;
  const decade = (size) => (size > 0 ? Math.ceil(Math.log10(size) - 1e-9) : 0); // the power of ten above
  const text = (x, y, words, more = "") => `<text x="${x}" y="${y}" ${more}>${words}</text>`;
  const middle = 'text-anchor="middle"', end = 'text-anchor="end"';
  const color = (level) => {
    const at = (8 * level) / (LEVELS - 1), low = Math.min(Math.floor(at), 7);
    const [a, b] = [low, low + 1].map((k) => [0, 2, 4].map((c) => parseInt(VIRIDIS[k].slice(c, c + 2), 16)));
    return `rgb(${a.map((part, c) => Math.round(part + (at - low) * (b[c] - part)))})`;
  };

  // A map of a table, in one path for each colour; what is zero, down to rounding, stays grey.
  const map = (table, largest, depth, left, side, step) => {
    const cells = range(LEVELS).map(() => ""), parts = [], n = table.length;
    table.forEach((row, r) => {
      const levels = row.map((entry) => {
        if (Math.abs(entry) <= 1e-14 * largest) return -1;
        const level = Math.floor(8 * (Math.log10(Math.abs(entry)) - decade(largest) + DECADES));
        return Math.min(Math.max(level, 0), LEVELS - 1);
      });
      for (let c = 0, from = 0; c < n; c++) {
        if (levels[c + 1] === levels[c]) continue;
        if (levels[c] >= 0) cells[levels[c]] += `M${from} ${r}h${c + 1 - from}`;
        from = c + 1;
      }
    });
    for (let k = 0; k < depth; k++) {
      const edge = (side * k) / depth, at = (side * (k + 0.5)) / depth;
      if (k > 0) parts.push(`<path d="M${left} ${25 + edge}h${side}M${left + edge} 25v${side}" stroke="#fff"/>`);
      if (k % step === 0) parts.push(text(left - 5, 29 + at, k + 1, end), text(left + at, 38 + side, k + 1, middle));
    }
    return (
      `<g shape-rendering="crispEdges"><path d="M${left} 25h${side}v${side}h-${side}z" fill="${GREY}"/>` +
      `<g transform="translate(${left} 25) scale(${side / n}) translate(0 .5)">` +
      `${cells.map((path, level) => path && `<path stroke="${color(level)}" d="${path}"/>`).join("")}</g></g>` +
      parts.join("")
    );
  };
  const legend = (largest) => {
    const parts = [`<path d="M252 204h9v9h-9z" fill="${GREY}"/>`, text(266, 212.5, "zero")], top = decade(largest);
    if (largest === 0) return parts.join("");
    for (const k of range(LEVELS)) parts.push(`<path d="M${252 + 1.8 * k} 166h1.8v10h-1.8z" fill="${color(k)}"/>`);
    for (const k of [0, 3, 6]) {
      const at = 252 + 14.4 * k;
      parts.push(`<path d="M${at} 176v4" stroke="#000"/>`, text(at, 192, power(top - DECADES + k), middle));
    }
    return `${text(295, 159, "size of an entry", middle)}<g shape-rendering="crispEdges">${parts.join("")}</g>`;
  };

  // The eigenvalues from the largest to the smallest: decades, and linear around zero.
  const spectrum = (eigenvalues, signs, biggest) => {
    const N = eigenvalues.length, top = decade(biggest), r = N > 40 ? 2 : 3;
    const x = (k) => (48 + (300 * (k + 0.5)) / N).toFixed(1);
    const y = (value) => {
      const size = Math.abs(value) / 10 ** (top - DECADES);
      return 314 - 8 * Math.sign(value) * (size < 1 ? size : 1 + Math.log10(size));
    };
    const parts = ['<path d="M48 314H348" stroke="#999"/>', text(42, 318, "0", end)];
    for (const n of biggest > 0 ? [top, top - 2, top - 4] : []) {
      for (const at of [y(10 ** n), y(-(10 ** n))]) {
        parts.push(`<path d="M48 ${at}H348" stroke="#ddd"/>`, text(42, at + 4, (at > 314 ? "−" : "") + power(n), end));
      }
    }
    const shapes = [
      ["positive", 1, `fill="${BLUE}"`, (r) => `m-${r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 -${2 * r} 0z`],
      ["zero", 0, 'stroke="#000"', (r) => `m-${r} -${r}l${2 * r} ${2 * r}m-${2 * r} 0l${2 * r} -${2 * r}`],
      ["negative", -1, `fill="${ORANGE}"`, (r) => `m-${r} -${r}h${2 * r}v${2 * r}h-${2 * r}z`],
    ];
    shapes.forEach(([name, sign, style, shape], i) => {
      const own = range(N).filter((k) => signs[k] === sign);
      const path = own.map((k) => `M${x(k)} ${y(sign && eigenvalues[k]).toFixed(1)}${shape(r)}`).join("");
      parts.push(`<path ${style} d="M${58 + 105 * i} 244${shape(3)}${path}"/>`);
      parts.push(text(66 + 105 * i, 248, `${own.length} ${name}`));
    });
    parts.push(text(x(0), 384, 1, middle), text(x(N - 1), 384, N, middle), text(198, 384, "eigenvalues, sorted", middle));
    return `${parts.join("")}<path d="M48 256V372H348" fill="none" stroke="#000"/>`;
  };

  return ({ depth, width, activation, law, number }) => {
    const relu = activation === "ReLU", size = width * width;
    const H = differentiate(sample(depth, width, relu, law, number), depth, width, activation);
    const eigenvalues = diagonalize(H), N = H.length;
    const largest = Math.max(...H.map((row) => Math.max(...row.map(Math.abs))));
    const biggest = Math.max(eigenvalues[0], -eigenvalues[N - 1]);
    const signs = eigenvalues.map((value) => (Math.abs(value) <= ZERO * biggest ? 0 : Math.sign(value)));
    const blocks = range(depth).map(() => range(depth).fill(0));
    let trace = 0, own = 0, others = 0;
    for (let r = 0; r < N; r++) {
      trace += H[r][r];
      for (let c = 0; c < N; c++) {
        const k = Math.floor(r / size), l = Math.floor(c / size), share = Math.abs(H[r][c]) / size ** 2;
        blocks[k][l] += share;
        if (k === l) own += share / depth;
        else others += share / (depth * (depth - 1));
      }
    }
    const count = (sign) => signs.filter((other) => other === sign).length;
    const name = law === "Xavier / He" ? (relu ? "He" : "Xavier") : law;
    const found = largest
      ? `the ${N} eigenvalues (${count(1)} positive, ${count(-1)} negative, ${count(0)} zero) reach from ` +
        `${digits(signs[N - 1] && eigenvalues[N - 1])} to ${digits(signs[0] && eigenvalues[0])} and add up to the ` +
        `trace, ${digits(trace)}. The mean absolute entry is ${digits(own)} in the diagonal blocks, ${digits(others)} ` +
        "in the others."
      : `this network is dead. Its output is zero for all ${SAMPLES} inputs, and so are all ${N} eigenvalues.`;
    const svg =
      '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 389" width="480" height="519" font-size="11"' +
      ' font-family="DejaVu Sans, Verdana, sans-serif"><rect width="360" height="389" fill="#fff"/>' +
      text(131, 16, `all ${N} × ${N} entries`, middle) + text(300, 16, "block means", middle) +
      text(131, 232, "layer l", middle) + `<text transform="translate(14 116) rotate(-90)" ${middle}>layer k</text>` +
      map(H, largest, depth, 40, 182, 1) + map(blocks, largest, depth, 252, 96, depth > 4 ? 2 : 1) +
      `${legend(largest)}${spectrum(eigenvalues, signs, biggest)}</svg>`;
    return {
      svg, hessian: H, eigenvalues,
      text: `Depth ${depth}, width ${width}, ${activation}, ${name}, network ${number}: ${found}`,
    };
  };
})()
