// The picture of a README: the transcript of a lesson that is marked `<!-- record s10 picture -->`,
// as an animated SVG, a line after the other. Nothing in it runs: a page may show it as an image.
import { columns } from "./columns.ts";
import { readTranscripts } from "./transcripts.ts";

const [CHAR, LINE, EDGE] = [8, 19, 16]; // px: a column, a row, the margin
const STEP = /^((You|alice|bob|mallory)\S* > .|\$ )/; // what somebody types
const STYLE = `text { font: 13px ui-monospace, Menlo, Consolas, monospace }
text { fill: #cad3f5; opacity: 0; animation: show 0s forwards }
.step { fill: #8bd5ca }
@keyframes show { to { opacity: 1 } }
@media (prefers-reduced-motion) { text { opacity: 1; animation: none } }`;

const escaped = (text: string) =>
  text.replace(/[&<>]/g, (sign) => `&#${sign.codePointAt(0)};`).replaceAll(" ", "\u00a0");

/** The picture of a lesson; "" if none of its transcripts is to be one. */
export function pictureOf(markdown: string): string {
  const marked = readTranscripts(markdown).found.find(({ setup }) => setup.picture);
  if (!marked) return "";
  const lines = markdown.split("\n").slice(marked.from, marked.to - 1);
  const width = Math.max(...lines.map((line) => columns(line).length)) * CHAR + 2 * EDGE;
  const height = lines.length * LINE + 2 * EDGE;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">
<style>\n${STYLE}\n</style>
<rect width="100%" height="100%" rx="8" fill="#24273a"/>\n${textsOf(lines).join("\n")}\n</svg>\n`;
}

/** The lines as SVG texts. Each appears a moment after the one above it, a typed one a second. */
function textsOf(lines: string[]): string[] {
  const texts: string[] = [];
  let time = 0; // s
  for (const [row, line] of lines.entries()) {
    const isStep = STEP.test(line);
    time += isStep ? 1 : 0.15;
    const place = `x="${EDGE}" y="${EDGE + (row + 0.75) * LINE}" class="${isStep ? "step" : ""}"`;
    const style = `style="animation-delay: ${time.toFixed(2)}s"`;
    texts.push(`<text ${place} ${style}>${escaped(line)}</text>`);
  }
  return texts;
}
