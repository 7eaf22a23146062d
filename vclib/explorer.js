// Brings the sliders of every explorer on the page to life. No library; see explorer.py for the data.
(async () => {
  for (const root of document.querySelectorAll(".vc-explorer:not([data-ready])")) {
    root.dataset.ready = "";
    const image = root.querySelector("img");
    const readout = root.querySelector("figcaption");
    const sliders = [...root.querySelectorAll("input[type=range]")];
    const texts = sliders.map((slider) => JSON.parse(slider.dataset.texts));
    const live = window.vcLive?.[root.id]; // a function that computes the picture, in place of pictures
    let data;
    try {
      const packed = Uint8Array.from(atob(root.dataset.frames), (letter) => letter.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      data = await new Response(stream).json();
    } catch {
      readout.textContent += " This browser is too old for the sliders: they stay where they are.";
      continue;
    }
    const show = () => {
      let index = 0;
      const values = {};
      sliders.forEach((slider, i) => {
        const text = texts[i][slider.value];
        index = index * texts[i].length + Number(slider.value);
        if (live) values[slider.dataset.name] = data.values[slider.dataset.name][slider.value];
        slider.setAttribute("aria-valuetext", text);
        slider.parentElement.querySelector("output").textContent = text;
      });
      const frame = live ? live(values) : data.frames[index];
      const svg = live ? frame.svg : frame.svg.map((line) => data.lines[line]).join("\n");
      image.src = "data:image/svg+xml," + encodeURIComponent(svg);
      image.alt = live ? `${data.title}. ${frame.text}` : frame.alt;
      readout.textContent = frame.text;
    };
    sliders.forEach((slider) => slider.addEventListener("input", show));
    show(); // a reload may have kept the sliders where the reader left them
  }
})();
