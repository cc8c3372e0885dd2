// Runs test files in a separate process, for settings that a process can select only once.

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runNode } from './children';
import { projectRoot } from './fixtures';

/**
 * Expects all of `suites` to pass with fewer sizes and with `env` in the environment. Returns the
 * number of passed tests.
 */
export async function passSuites(suites: string[], env: Record<string, string>): Promise<number> {
  const directory = mkdtempSync(join(tmpdir(), 'diffqkv-suites-'));
  const report = join(directory, 'report.json');
  try {
    const outcome = await runNode(
      [
        join(projectRoot, 'node_modules', 'jest', 'bin', 'jest.js'),
        '--runInBand',
        '--silent',
        '--json',
        `--outputFile=${report}`,
        ...suites.map((suite) => `/test/\\w+/${suite}\\.test\\.ts$`),
      ],
      { env: { DIFFQKV_TEST_REDUCED: '1', OMP_WAIT_POLICY: 'passive', ...env }, timeoutMs: 580_000 },
    );
    if (!existsSync(report))
      throw new Error(`jest exited with ${outcome.status ?? outcome.signal}\n${outcome.stderr.slice(-4000)}`);
    const { success, numPassedTests, numPassedTestSuites, testResults } = JSON.parse(readFileSync(report, 'utf8'));
    const failed = testResults.flatMap((suite: { message: string }) =>
      suite.message ? [suite.message.slice(0, 3000)] : [],
    );
    expect(failed).toEqual([]);
    expect({ success, numPassedTestSuites }).toEqual({ success: true, numPassedTestSuites: suites.length });
    return numPassedTests;
  } finally {
    rmSync(directory, { recursive: true });
  }
}
