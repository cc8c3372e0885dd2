// Lists which test files run on which devices. Every script that selects test files by device reads
// the lists here.
//
//   node test/tools/suites.mjs   a pattern for Jest: the files that run on every device

import { readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const tests = join(dirname(fileURLToPath(import.meta.url)), '..');

const paths = readdirSync(tests, { recursive: true }).filter((path) => /\.test\.[jt]s$/.test(path));

/** The path below test/ of each test file, by its name without `.test.ts`. */
export const testFiles = new Map(paths.map((path) => [basename(path).replace(/\.test\.[jt]s$/, ''), path]));
if (testFiles.size < paths.length) throw new Error('two test files have the same name');

/**
 * Test files (without `.test.ts`) that run the same tests on each device. Only these test anything
 * on a GPU.
 */
export const everyDevice = [...testFiles]
  .filter(([, path]) => /^\(?(0, _devices\.)?onEveryDevice\)?\(/m.test(readFileSync(join(tests, path), 'utf8')))
  .map(([name]) => name)
  .sort();

/** Test files for operators, and for their tensors. */
export const operators = [...everyDevice.filter((name) => testFiles.get(name).startsWith('operators')), 'tensor'];

/** Test files for the emulated device itself. */
export const emulation = [
  'counters',
  'device_lost',
  'emulated_device',
  'emulation',
  'gpu_driver',
  'gpu_shapes',
  'launches',
];

/**
 * Test files that measure time or memory, so nothing may run beside them. isa.test.ts is here
 * because it runs suites on several threads.
 */
export const alone = ['behavior', 'chat_template_limits', 'cli', 'hostile_tokenizers', 'isa', 'out_of_memory'];

/** Test files that take too long for npm test: npm run ci runs them. */
export const slow = [
  ...[
    'bench',
    'convert',
    'convert_factor',
    'convert_process',
    'forged_tokens',
    'fuzz',
    'gpu_check',
    'http_example',
    'hub_faults',
  ],
  ...['ptx', 'pytorch'],
  ...['tokenizer_process', 'tokenizer_reference'],
];

/** A pattern for Jest's --testPathPatterns that matches these files only. */
export const pattern = (stems) => `/test/\\w+/(${stems.join('|')})\\.test\\.[jt]s$`;

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) console.log(pattern(everyDevice));
