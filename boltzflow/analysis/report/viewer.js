(function () {
  "use strict";
  const byId = (id) => document.getElementById(id);

  function hasWebGL() {
    try {
      const canvas = document.createElement("canvas");
      return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
    } catch (error) {
      return false;
    }
  }

  // without it the still picture stays, with the line that says why
  if (!window.$3Dmol || !hasWebGL()) return;

  const data = JSON.parse(byId("conformers").textContent);
  const partners = data.atoms.map(() => []);
  data.bonds.forEach(([a, b]) => {
    partners[a].push(b);
    partners[b].push(a);
  });
  const colours = { C: "#8a8f98", H: "#d5d8dc", N: "#3b6fd4", O: "#d8432f", S: "#c8a415", P: "#e08a1e" };
  const colour = (atom) => colours[atom.elem] || "#2e9e6b";

  byId("viewer").hidden = false;
  byId("still").hidden = true;
  const viewer = $3Dmol.createViewer(byId("canvas"), { backgroundAlpha: 0, antialias: true });
  if (!viewer) {
    byId("viewer").hidden = true;
    byId("still").hidden = false;
    return;
  }
  viewer.setBackgroundColor("#000000", 0);
  const models = data.frames.map((x, k) => {
    const model = viewer.addModel();
    model.addAtoms(
      data.atoms.map((atom, i) => ({
        ...atom,
        x: x[3 * i],
        y: x[3 * i + 1],
        z: x[3 * i + 2],
        serial: i,
        bonds: partners[i].slice(),
        bondOrder: partners[i].map(() => 1),
        ss: data.structure.length ? data.structure[k][atom.residue] : "c",
        hetflag: false,
      }))
    );
    return model;
  });

  const which = byId("which");
  const overlay = byId("overlay");
  const hydrogens = byId("hydrogens");
  const shown = (selection) => (hydrogens.checked ? selection : { ...selection, not: { elem: "H" } });

  function full() {
    const stick = { radius: data.cartoon ? 0.08 : 0.14, colorfunc: colour };
    const style = { stick, sphere: { radius: data.cartoon ? 0.08 : 0.28, colorfunc: colour } };
    if (data.cartoon) style.cartoon = { color: "#5a8fc4", opacity: 0.9 };
    return style;
  }

  function faint() {
    if (data.cartoon) return { cartoon: { color: "#8a8f98", opacity: 0.45, thickness: 0.2 } };
    return { stick: { radius: 0.035, colorfunc: colour } };
  }

  function draw() {
    const current = Number(which.value) - 1;
    models.forEach((model, k) => {
      model.setStyle({}, {});
      if (k === current) model.setStyle(shown({}), full());
      else if (overlay.checked) model.setStyle(shown({}), faint());
    });
    viewer.render();
    byId("count").textContent = `${current + 1} of ${models.length}`;
    byId("label").textContent = data.labels[current].replaceAll("-", "\u2212");
  }

  function fit() {
    viewer.zoomTo();
    // the structures lie along x, and zoomTo fits the shorter side of the window
    const box = byId("canvas").getBoundingClientRect();
    viewer.zoom(Math.min(1.35, Math.max(0.6, (0.88 * box.width) / box.height)));
    viewer.render();
  }

  function reset() {
    viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);
    fit();
    draw();
  }

  which.addEventListener("input", draw);
  overlay.addEventListener("change", draw);
  hydrogens.addEventListener("change", draw);
  byId("reset").addEventListener("click", reset);
  window.addEventListener("resize", () => viewer.resize());
  draw();
  fit();
})();
