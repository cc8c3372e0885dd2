import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** The folder of package.json: this file runs from lib/ (tests) and from dist/lib/. */
export const packageRoot: string = (() => {
  let folder = __dirname;
  while (!existsSync(join(folder, 'package.json')) && dirname(folder) !== folder)
    folder = dirname(folder);
  return folder;
})();
