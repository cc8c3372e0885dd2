// The package's declarations compile in strict TypeScript with skipLibCheck false, with the types of
// Node and without.

import { cpSync, mkdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryDirectories } from '../support/checkpoints';
import { runNode } from '../support/children';
import { projectRoot } from '../support/fixtures';

const directories = temporaryDirectories();
let directory: string;
beforeAll(() => {
  directory = directories.make();
  const installed = join(directory, 'node_modules', 'diffqkv');
  mkdirSync(join(directory, 'node_modules', '@types'), { recursive: true });
  // Copied, because TypeScript would find the types of Node beside the target of a link.
  cpSync(join(projectRoot, 'dist', 'lib'), join(installed, 'dist', 'lib'), {
    recursive: true,
    filter: (path) => statSync(path).isDirectory() || /\.d\.m?ts$/.test(path),
  });
  cpSync(join(projectRoot, 'package.json'), join(installed, 'package.json'));
  for (const name of ['@types/node', 'undici-types']) {
    symlinkSync(join(projectRoot, 'node_modules', name), join(directory, 'node_modules', name));
  }
  const program = `
    import { Chat, type GenerateOptions, Model, Session } from 'diffqkv';
    export async function use(options: GenerateOptions): Promise<string> {
      using model = await Model.load('somewhere', { device: 'cpu' });
      const chat: Chat = await model.createChat({ system: 'x', contextPolicy: 'shift' });
      for await (const { token } of chat.send('x', options)) token.toFixed();
      const session: Session = chat.session;
      session[Symbol.dispose]();
      // @ts-expect-error: no such option
      await model.createChat({ sytem: 'x' });
      // @ts-expect-error: the session is the chat's
      chat.send('x', { session });
      return (await chat.send('x').result).text;
    }`;
  writeFileSync(join(directory, 'use.mts'), program);
  writeFileSync(join(directory, 'use.cts'), program);
  const signals = `
    import type { GenerateOptions } from 'diffqkv';
    export const options: GenerateOptions = { signal: AbortSignal.timeout(5) };
    // @ts-expect-error: no signal
    export const wrong: GenerateOptions = { signal: {} };`;
  writeFileSync(join(directory, 'signals.mts'), signals);
});
afterAll(() => directories.cleanUp());

it.each<[string, { types: string[]; lib: string[] }, string[]]>([
  ['with ECMAScript only', { types: [], lib: ['es2022'] }, ['use.mts', 'use.cts']],
  ['with the types of Node', { types: ['node'], lib: ['es2022'] }, ['use.mts', 'signals.mts']],
])('compile %s', async (_, options, files) => {
  const compilerOptions = {
    ...{ strict: true, skipLibCheck: false, noEmit: true, target: 'es2022', module: 'nodenext' },
    ...options,
  };
  writeFileSync(join(directory, 'tsconfig.json'), JSON.stringify({ compilerOptions, files }));
  const compiler = join(projectRoot, 'node_modules', 'typescript', 'bin', 'tsc');
  const { status, stdout } = await runNode([compiler, '-p', directory], { cwd: directory });
  expect({ status, stdout }).toEqual({ status: 0, stdout: '' });
});
