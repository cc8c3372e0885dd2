import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { packageRoot } from './paths';

/** Compiles the native module in the package's folder. Resolves to the exit status. */
export async function build(args: string[]): Promise<number> {
  const script = join(packageRoot, 'scripts', 'build-native.js');
  const child = spawn(process.execPath, [script, ...args], { cwd: packageRoot, stdio: 'inherit' });
  // Ctrl-C reaches the compiler too. Wait for it to exit, so that it does not outlive this process.
  const ignore = () => {};
  process.on('SIGINT', ignore);
  const [status, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
  process.off('SIGINT', ignore);
  return signal === 'SIGINT' ? 130 : (status ?? 1);
}
