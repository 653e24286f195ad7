// Filters the answers by kind, slice and words, twenty at a time. Without it they stand there as a plain list.
(() => {
  document.documentElement.classList.add("js");
  const rows = [...document.querySelectorAll(".item")];
  if (!rows.length) return;
  const find = document.getElementById("find"), slice = document.getElementById("slice");
  const more = document.getElementById("more"), found = document.getElementById("found");
  const radios = [...document.querySelectorAll("input[name=kind]")];
  const words = rows.map((row) => row.textContent.toLowerCase());
  const STEP = 20;
  let room = STEP;

  function show() {
    const kinds = radios.find((radio) => radio.checked).value.split(" ").filter(Boolean);
    const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const part = slice ? slice.value : "";
    let hits = 0;
    rows.forEach((row, i) => {
      const hit = (!kinds.length || kinds.some((kind) => row.dataset.kinds.split(" ").includes(kind)))
        && (!part || row.dataset.slices.split(" ").includes(part))
        && wanted.every((word) => words[i].includes(word));
      row.hidden = !hit || hits >= room;
      if (hit) hits += 1;
    });
    more.parentElement.hidden = hits <= room;
    found.textContent = hits === 1 ? "1 row" : hits + " rows";
  }
  function afresh() { room = STEP; show(); }
  function pickAll() { radios.forEach((radio) => { radio.checked = radio.value === ""; }); }
  // A link to one row shows it whatever the filter says.
  function reveal() {
    const row = rows.find((one) => "#" + one.id === decodeURIComponent(location.hash));
    if (row) { row.hidden = false; row.open = true; row.scrollIntoView(); }
  }

  radios.forEach((radio) => radio.addEventListener("change", afresh));
  find.addEventListener("input", afresh);
  if (slice) slice.addEventListener("change", afresh);
  more.addEventListener("click", () => { room += STEP; show(); });
  document.querySelectorAll("a.pick").forEach((link) => link.addEventListener("click", () => {
    pickAll();
    slice.value = link.dataset.slice;
    find.value = "";
    afresh();
  }));
  addEventListener("hashchange", reveal);
  afresh();
  reveal();
})();
