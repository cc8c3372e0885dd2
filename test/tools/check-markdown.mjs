// Checks Markdown:
//
// - A line has at most 100 columns. Exempt are table rows, lines of code blocks (fenced or indented),
//   and a line whose only space is before its last word, such as a long link.
// - Every fence has its end, and has a line of its own.
//
// Each run first proves that the check finds such faults.
//
//   node test/tools/check-markdown.mjs
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './run.mjs';

const COLUMNS = 100;

/** What is wrong, as `[line, problem]`; lines count from 1. */
function faultsOf(text) {
  const faults = [];
  /** The fence of the block that is open, and its line. */
  let open = { mark: '', line: 0 };
  text.split('\n').forEach((line, i) => {
    const [, mark, info] = /^ *(```+)([^`]*)$/.exec(line) ?? [];
    if (open.mark === '' && mark !== undefined) {
      open = { mark, line: i + 1 };
    } else if (open.mark !== '' && mark === open.mark && info.trim() === '') {
      open = { mark: '', line: 0 };
    } else if (line.includes(open.mark === '' ? '```' : open.mark)) {
      faults.push([i + 1, 'a fence that neither begins nor ends a block']);
    }
    const exempt = open.mark !== '' || /^ *\||^ {4}/.test(line) || !/\S.* \S/.test(line.slice(0, COLUMNS + 1));
    if ([...line].length > COLUMNS && !exempt) faults.push([i + 1, `more than ${COLUMNS} columns`]);
  });
  if (open.mark !== '') faults.push([open.line, 'the block has no end']);
  return faults;
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
  ['text\n```ts\nlet x;\n', [2]],
  ['```ts\nlet x; ```\ntext\n', [2, 1]],
  ['```ts\nlet x;\n```\ntext\n```\n', [5]],
  ['```ts\nlet x;\n```ts\nlet y;\n```\n', [3]],
  ['let x; ```\n', [1]],
  ['- text\n\n  ```ts\n  let x;\n  ```\n', []],
  ['````text\n```ts\n````\n', []],
];
const blind = proofs.filter(([text, lines]) => String(faultsOf(text).map(([line]) => line)) !== String(lines));
const found = [...pages('.')].flatMap((path) =>
  faultsOf(readFileSync(join(root, path), 'utf8')).map(([line, problem]) => `${path}:${line}: ${problem}`),
);
for (const [text] of blind) console.log(`the check returns the wrong result for: ${text}`);
for (const line of found) console.log(line);
process.exitCode = blind.length + found.length === 0 ? 0 : 1;
