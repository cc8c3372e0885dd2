import { dirname, join } from 'node:path';

/** The folder of package.json. This file runs as dist/cli/paths.js. */
export const packageRoot = join(dirname(__dirname), '..');
