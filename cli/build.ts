import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { packageRoot } from './paths';

/** Compiles the native module in the package's own folder. Resolves to the exit status. */
export async function build(args: string[]): Promise<number> {
  const script = join(packageRoot, 'scripts', 'build-native.js');
  const child = spawn(process.execPath, [script, ...args], { cwd: packageRoot, stdio: 'inherit' });
  // Ctrl-C reaches the compiler too; wait for it, so that nothing runs on behind the prompt.
  const ignore = () => {};
  process.on('SIGINT', ignore);
  const [status, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
  process.off('SIGINT', ignore);
  return signal === 'SIGINT' ? 130 : (status ?? 1);
}
