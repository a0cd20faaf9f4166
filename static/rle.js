// Masks as COCO run lengths: column by column, background first, as numbers or packed in text.

const LARGEST_SIDE = 32_768; // of a grid that is drawn

// → the lengths of the runs. In text a length has five bits a sign, and from the fourth on it is the difference to the
// one before last. Source: rleFrString in cocoapi's common/maskApi.c.
export function runsOf(counts) {
  if (typeof counts !== "string") return counts;
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    let bits;
    do {
      bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 0x1f) << shift;
      shift += 5;
    } while (bits & 0x20 && at < counts.length);
    if (bits & 0x10 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs.at(-2) : value);
  }
  return runs;
}

// Fills what a mask covers, stretched over a canvas of this size, in the context's colour. No pixel is touched twice,
// so a half transparent colour stays even; columns that fall between two pixels are passed over.
export function fillMask(context, { size: [height, width], counts }, { across, down }) {
  if (!(height > 0 && width > 0 && height <= LARGEST_SIDE && width <= LARGEST_SIDE)) return;
  let at = 0;
  runsOf(counts).forEach((length, place) => {
    const end = Math.min(height * width, at + Math.max(0, length));
    if (place % 2) fillRun(context, at, end, { height, toX: across / width, toY: down / height });
    at = end;
  });
}

function fillRun(context, from, end, { height, toX, toY }) {
  for (let column = Math.floor(from / height); column * height < end; column++) {
    const x = Math.round(column * toX);
    const wide = Math.round((column + 1) * toX) - x;
    if (wide === 0) continue;
    const y = Math.round(Math.max(0, from - column * height) * toY);
    const high = Math.round(Math.min(height, end - column * height) * toY) - y;
    if (high > 0) context.fillRect(x, y, wide, high);
  }
}
