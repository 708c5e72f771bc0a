// Sorts a table by the column whose heading is clicked; again: the other way round.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), body = heading.closest("table").tBodies[0];
    const place = heading.cellIndex, down = heading.ariaSort === "ascending";
    const key = row => row.cells[place].dataset.key ?? row.cells[place].textContent;
    const compare = (one, two) => Number(one) - Number(two) || one.localeCompare(two, undefined, {numeric: true});
    const rows = [...body.rows].sort((one, two) => compare(key(one), key(two)));
    body.append(...(down ? rows.reverse() : rows));
    for (const other of heading.parentNode.cells) other.ariaSort = null;
    heading.ariaSort = down ? "descending" : "ascending";
  });
}
