// npm run demo: a help page by the embedded model, through the command line.
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const prompt = '# tar\n> Archiving utility.\n';
process.stdout.write(prompt);
const { status } = spawnSync(
  process.execPath,
  [
    join(root, 'dist', 'cli', 'main.js'),
    'generate',
    '--prompt',
    prompt,
    '--max-tokens',
    '300',
    ...process.argv.slice(2),
  ],
  { stdio: ['ignore', 'inherit', 'inherit'] },
);
process.exitCode = status ?? 1;
