import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** The folder of package.json. This file runs from lib/ (in tests) and from dist/lib/. */
export const packageRoot: string = (() => {
  let folder = __dirname;
  while (!existsSync(join(folder, 'package.json')) && dirname(folder) !== folder) {
    folder = dirname(folder);
  }
  return folder;
})();
