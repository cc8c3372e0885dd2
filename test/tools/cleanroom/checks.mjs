// Counts and prints checks, and runs processes for them.
import { spawn } from 'node:child_process';

export const counts = { passed: 0, failed: 0, skipped: 0 };

export function skip(name, why) {
  counts.skipped++;
  console.log(`SKIPPED ${name}: ${why}`);
}

/**
 * Runs one check: `work` throws, or returns a text to print. Resolves to whether the check passed.
 */
export async function check(name, work) {
  try {
    const what = await work();
    counts.passed++;
    console.log(`ok   ${name}${what ? `: ${what}` : ''}`);
    return true;
  } catch (error) {
    counts.failed++;
    console.log(`FAIL ${name}: ${error.message}`);
    return false;
  }
}

export function equal(name, value, wanted) {
  const [a, b] = [JSON.stringify(value), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${name} is ${a}, not ${b}`);
}

/** Runs a command and returns { status, stdout, stderr }. Kills it after `seconds`. */
export function run(command, args, { cwd, env, seconds = 600 } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd, env: env ?? process.env, stdio: ['ignore', 'pipe', 'pipe'] });
    const output = { stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr'])
      child[name].setEncoding('utf8').on('data', (text) => {
        output[name] += text;
      });
    const timer = setTimeout(() => child.kill('SIGKILL'), seconds * 1000);
    child.on('error', (error) => resolve({ status: -1, stdout: '', stderr: error.message }));
    child.on('close', (status) => {
      clearTimeout(timer);
      resolve({ status: status ?? -1, ...output });
    });
  });
}

/** Returns the standard output of a run that must succeed. */
export async function succeed(result) {
  const { status, stdout, stderr } = await result;
  if (status !== 0) throw new Error(`status ${status}: ${(stderr + stdout).trim().slice(-1500)}`);
  return stdout;
}
