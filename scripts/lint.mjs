// npm run lint: runs biome on TypeScript, the boundary rules, the check of Markdown, and
// clang-format on C++ if it is installed. Every check runs, even if another fails. --fix (npm run
// format) applies the tools' automatic fixes. If DIFFQKV_REPORT_DIR is set, the counts are written
// to lint.json in that folder.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const fix = process.argv.includes('--fix');
const counts = { passed: 0, failed: 0, skipped: 0 };

function check(name, command, args) {
  console.log(`\n== ${name}`);
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error) console.error(error.message);
  counts[status === 0 ? 'passed' : 'failed']++;
}

function sources(folder) {
  return readdirSync(join(root, folder), { recursive: true })
    .filter((name) => /\.(cc|h|cu|cuh)$/.test(name) && !name.includes('node_modules'))
    .map((name) => join(folder, name));
}

const biome = createRequire(import.meta.url).resolve('@biomejs/biome/bin/biome');
check('biome', process.execPath, [biome, 'check', '--error-on-warnings', ...(fix ? ['--write'] : [])]);
check('boundaries', process.execPath, ['test/tools/check-boundaries.mjs']);
check('markdown', process.execPath, ['test/tools/check-markdown.mjs']);
// Versions of clang-format format differently, so only version 14 (Debian 12) decides.
const { stdout } = spawnSync('clang-format', ['--version'], { encoding: 'utf8' });
if (/version 14\./.test(stdout ?? '')) {
  const folders = ['bench', 'csrc', 'cuda', 'test'];
  check('clang-format', 'clang-format', [...(fix ? ['-i'] : ['--dry-run', '--Werror']), ...folders.flatMap(sources)]);
} else {
  console.log(
    `\n== clang-format\nSKIPPED: clang-format 14 is not installed${stdout ? ` (found: ${stdout.trim()})` : ''}`,
  );
  counts.skipped++;
}

console.log(`\nlint: ${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
if (process.env.DIFFQKV_REPORT_DIR) {
  mkdirSync(process.env.DIFFQKV_REPORT_DIR, { recursive: true });
  writeFileSync(join(process.env.DIFFQKV_REPORT_DIR, 'lint.json'), JSON.stringify(counts));
}
process.exitCode = counts.failed === 0 ? 0 : 1;
