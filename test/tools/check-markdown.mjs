// Checks that Markdown has at most 100 columns. Exempt are table rows, lines of code blocks (fenced
// or indented), and a line whose only space is before its last word, such as a long link. Each run
// first proves that the check finds a long line.
//
//   node test/tools/check-markdown.mjs
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './run.mjs';

const COLUMNS = 100;

/** The numbers of the lines that are too long, from 1. */
function tooLong(text) {
  let fence = '';
  return text.split('\n').flatMap((line, i) => {
    const mark = /^ *(```+)/.exec(line)?.[1] ?? '';
    if (mark !== '' && (fence === '' || mark === fence)) fence = fence === '' ? mark : '';
    const exempt = fence !== '' || /^ *\||^ {4}/.test(line) || !/\S.* \S/.test(line.slice(0, COLUMNS + 1));
    return [...line].length > COLUMNS && !exempt ? [i + 1] : [];
  });
}

function* pages(folder) {
  for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory() && !/^(node_modules|dist|build.*|\..*)$/.test(entry.name)) yield* pages(path);
    else if (entry.isFile() && entry.name.endsWith('.md')) yield path;
  }
}

const words = 'word '.repeat(21);
const proofs = [
  [words, [1]],
  [`- ${words}\n`, [1]],
  [`\`\`\`ts\n${words}\n\`\`\`\n${words}`, [4]],
  [`| ${words} |\n\n    ${words}\n`, []],
  [`[link](${'x'.repeat(100)})`, []],
];
const blind = proofs.filter(([text, lines]) => String(tooLong(text)) !== String(lines));
const found = [...pages('.')].flatMap((path) =>
  tooLong(readFileSync(join(root, path), 'utf8')).map((line) => `${path}:${line}: more than ${COLUMNS} columns`),
);
for (const [text] of blind) console.log(`the check returns the wrong result for: ${text}`);
for (const line of found) console.log(line);
process.exitCode = blind.length + found.length === 0 ? 0 : 1;
