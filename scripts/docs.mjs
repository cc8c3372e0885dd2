// npm run docs: builds pages for every public name, the README and docs/ into build/docs
// (typedoc.json). Fails on a public name without a doc comment and on a broken link.

import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const typedoc = join(root, 'node_modules', 'typedoc', 'bin', 'typedoc');
const { status, error } = spawnSync(process.execPath, [typedoc, '--cleanOutputDir', ...process.argv.slice(2)], {
  cwd: root,
  stdio: 'inherit',
});
if (error) throw error;
process.exitCode = status ?? 1;
