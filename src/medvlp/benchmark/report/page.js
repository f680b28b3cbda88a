"use strict";
(() => {
  const form = document.getElementById("filters");
  const status = document.getElementById("status");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const show = (element, shown) => element.toggleAttribute("hidden", !shown);

  /* ---- sorting: rows within their block, numbers from the largest, empty cells always last */

  function valueOf(row, column, kind) {
    const cell = row.cells[column];
    if (kind === "text") return cell.textContent.trim();
    return cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort);
  }

  function sort(table, header, button) {
    const column = Number(button.dataset.col);
    const kind = button.dataset.kind;
    const before = header.getAttribute("aria-sort");
    const first = kind === "text" ? "ascending" : "descending";
    const second = kind === "text" ? "descending" : "ascending";
    const order = before === first ? second : first;
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      if (kind === "text") return sign * a[0].localeCompare(b[0], "en", { numeric: true });
      if (Number.isNaN(a[0]) || Number.isNaN(b[0])) return Number.isNaN(a[0]) - Number.isNaN(b[0]);
      return sign * (a[0] - b[0]);
    };
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("block"));
      rows.map((row) => [valueOf(row, column, kind), row]).sort(compare).forEach(([, row]) => body.append(row));
    }
    all("thead th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", order);
    status.textContent = `Sorted by ${button.textContent}, ${order}.`;
  }

  for (const table of all("table.sortable")) {
    for (const button of all("thead button", table)) {
      const header = button.closest("th");
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, header, button));
    }
  }

  /* ---- filters */

  const KEYS = ["task", "protocol", "fraction"];
  const attributes = "[data-task], [data-protocol], [data-fraction], [data-method]";
  const plain = all(attributes).filter((element) => !element.closest("table.wide"));

  function chosen() {
    const values = new FormData(form);
    const requested = Object.fromEntries(KEYS.map((key) => [key, values.get(key)]));
    return { requested, methods: new Set(values.getAll("method")) };
  }

  const matches = (element, { requested }) =>
    KEYS.every((key) => !requested[key] || element.dataset[key] === undefined || element.dataset[key] === requested[key]);
  const ofMethod = (element, { methods }) =>
    element.dataset.method === undefined || methods.has(element.dataset.method);

  /* Of a wide table columns are taken out, and the labels over them made narrower. A cell that no row of ours can be
     matched with stays as long as nothing is asked for. */
  function filterWide(table, choice) {
    const some = KEYS.some((key) => choice.requested[key]);
    const fits = (cell) => (cell.dataset.task === undefined ? !some : matches(cell, choice));
    const leaves = all("thead th.leaf", table);
    const kept = leaves.map(() => false);
    const stubs = leaves.length ? Number(leaves[0].querySelector("button").dataset.col) : 0;
    const bodies = [...table.tBodies].map((body) => {
      const rows = [...body.rows].filter((row) => !row.classList.contains("block"));
      let any = false;
      for (const row of rows) {
        [...row.cells].slice(stubs).forEach((cell, column) => {
          if (fits(cell)) any = kept[column] = true;
        });
      }
      show(body, any);
      return [body, rows];
    });
    const width = (from, to) => kept.slice(from, to).filter(Boolean).length;
    for (const header of all("thead th[data-from]", table)) {
      const columns = width(Number(header.dataset.from), Number(header.dataset.to));
      show(header, columns > 0);
      header.colSpan = Math.max(columns, 1);
    }
    for (const [body, rows] of bodies) {
      for (const row of rows) {
        show(row, ofMethod(row, choice));
        [...row.cells].slice(stubs).forEach((cell, column) => show(cell, kept[column]));
      }
      all("tr.block th", body).forEach((title) => { title.colSpan = stubs + width(0, kept.length); });
    }
    show(table.closest(".item"), kept.some(Boolean));
  }

  function filter() {
    const choice = chosen();
    plain.forEach((element) => show(element, matches(element, choice) && ofMethod(element, choice)));
    all("table.wide").forEach((table) => filterWide(table, choice));
    for (const shelf of all(".shelf")) {
      show(shelf, all(".item", shelf).some((item) => !item.hasAttribute("hidden")));
    }
    for (const section of all("section.filtered")) {
      const none = section.querySelector(".none");
      if (none) show(none, all(".item", section).every((item) => item.hasAttribute("hidden")));
    }
    const groups = all("#rows .item");
    const left = groups.filter((group) => !group.hasAttribute("hidden")).length;
    status.textContent = left === groups.length ? "" : `${left} of ${groups.length} groups of result rows match.`;
  }

  form.hidden = false;
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  filter(); /* a browser may have kept the choices of an earlier visit */

  /* ---- on paper nothing stays folded but the result rows */

  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = all("details.folded").filter((details) => !details.open);
    folded.forEach((details) => { details.open = true; });
  });
  window.addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));

  /* ---- a cell's link opens its rows */

  function open() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!(target instanceof HTMLDetailsElement)) return;
    target.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus();
  }
  window.addEventListener("hashchange", open);
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest('a[href^="#rows-"]');
    if (link && link.hash === location.hash) open();
  });
  open();
})();
