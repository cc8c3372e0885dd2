// The limits of Linux control groups, of version 1 and 2, read from folders as the kernel has them.

import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { listDevices } from '../../lib/index';
import { emulation } from '../emulation/module';
import { temporaryDirectories } from '../support/checkpoints';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const inTestModule = listDevices().some(({ id }) => id === 'emulated');
const mib = 1 << 20;

/** The limits with these files below /sys/fs/cgroup, and the lines of /proc/self/cgroup. */
function limits(groups: string[], files: Record<string, number | string>) {
  const root = directories.make();
  const all = Object.entries(files).map(([path, content]) => [`sys/fs/cgroup/${path}`, content] as const);
  for (const [path, content] of [['proc/self/cgroup', groups.join('\n')] as const, ...all]) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), `${content}\n`);
  }
  return emulation().controlGroupLimits(root);
}

const none = { total: null, available: null, cpus: null };
const version2 = ['0::/a.slice/b.scope'];
const version1 = ['12:memory:/a/b', '5:cpuset:/other', '4:cpu,cpuacct:/a/b', '1:name=systemd:/a/b'];

(inTestModule ? describe : describe.skip)('control groups', () => {
  test('are absent', () => {
    expect(emulation().controlGroupLimits(directories.make())).toEqual(none);
    expect(limits([], {})).toEqual(none);
    expect(limits(version2, {})).toEqual(none);
    expect(limits(version1, {})).toEqual(none);
    expect(limits(['nonsense', '3:memory', '7'], { 'memory/memory.limit_in_bytes': 5 })).toEqual(none);
  });

  test('of version 2 limit memory, of which inactive files are available', () => {
    const group = 'a.slice/b.scope/';
    const files = { [`${group}memory.max`]: 100 * mib, [`${group}memory.current`]: 70 * mib };
    expect(limits(version2, files)).toEqual({ total: 100 * mib, available: 30 * mib, cpus: null });
    const stat = `anon 5\nfile 9\nkernel 3\ninactive_file ${20 * mib}\nactive_file 8`;
    expect(limits(version2, { ...files, [`${group}memory.stat`]: stat })).toEqual({
      total: 100 * mib,
      available: 50 * mib,
      cpus: null,
    });
    const more = { ...files, [`${group}memory.stat`]: `inactive_file ${90 * mib}` };
    expect(limits(version2, more).available).toBe(100 * mib);
    expect(limits(version2, { ...files, [`${group}memory.current`]: 120 * mib }).available).toBe(0);
    expect(limits(version2, { ...files, [`${group}memory.max`]: 'max' })).toEqual(none);
    expect(limits(version2, { ...files, [`${group}memory.max`]: -1 })).toEqual(none);
    expect(limits(version2, { ...files, [`${group}memory.max`]: 0 })).toEqual({ total: 0, available: 0, cpus: null });
    expect(limits(version2, { [`${group}memory.max`]: 100 })).toEqual(none);
    expect(limits(version2, { [`${group}memory.current`]: 100 })).toEqual(none);
  });

  test('of version 2 limit time', () => {
    const cpus = (text: string) => limits(version2, { 'a.slice/b.scope/cpu.max': text }).cpus;
    expect(cpus('max 100000')).toBeNull();
    expect(cpus('100000 100000')).toBe(1);
    expect(cpus('100001 100000')).toBe(2);
    expect(cpus('250000 100000')).toBe(3);
    expect(cpus('300000 100000')).toBe(3);
    expect(cpus('800000 50000')).toBe(16);
    expect(cpus('1 100000')).toBe(1);
    expect(cpus('0 100000')).toBe(1);
    expect(cpus('100000 0')).toBeNull();
    expect(cpus('100000')).toBeNull();
  });

  test('of version 1 limit memory and time', () => {
    const memory = { 'memory/a/b/memory.limit_in_bytes': 64 * mib, 'memory/a/b/memory.usage_in_bytes': 60 * mib };
    expect(limits(version1, memory)).toEqual({ total: 64 * mib, available: 4 * mib, cpus: null });
    const stat = `inactive_file ${8 * mib}\ntotal_inactive_file ${16 * mib}`;
    expect(limits(version1, { ...memory, 'memory/a/b/memory.stat': stat }).available).toBe(20 * mib);
    const time = (quota: number, period: number) =>
      limits(version1, { 'cpu/a/b/cpu.cfs_quota_us': quota, 'cpu/a/b/cpu.cfs_period_us': period });
    expect(time(350_000, 100_000)).toEqual({ ...none, cpus: 4 });
    expect(time(-1, 100_000)).toEqual(none);
    expect(time(100_000, 0)).toEqual(none);
    expect(limits(version1, { 'cpu/a/b/cpu.cfs_quota_us': 5 })).toEqual(none);
    expect(limits(version1, { 'cpu/a/b/cpu.cfs_period_us': 5 })).toEqual(none);
    // A controller that this process has no group of, and one whose name is a part of another.
    const others = { ...memory, 'cpu/other/cpu.cfs_quota_us': 1, 'cpu/other/cpu.cfs_period_us': 1 };
    expect(limits(['5:cpuset:/other', '6:cpuacct:/other'], others)).toEqual(none);
    expect(limits(['5:cpuset,cpu:/other'], others).cpus).toBe(1);
  });

  test('have the lowest limit of a group and those above it', () => {
    const of = (folder: string, total: number, used: number, quota: number) => ({
      [`${folder}memory.max`]: total * mib,
      [`${folder}memory.current`]: used * mib,
      [`${folder}cpu.max`]: `${quota} 1000`,
    });
    const own = of('a.slice/b.scope/', 50, 10, 9000);
    const parent = of('a.slice/', 60, 45, 5000);
    const root = of('', 40, 10, 7000);
    expect(limits(version2, own)).toEqual({ total: 50 * mib, available: 40 * mib, cpus: 9 });
    expect(limits(version2, { ...own, ...parent })).toEqual({ total: 50 * mib, available: 15 * mib, cpus: 5 });
    expect(limits(version2, { ...own, ...root })).toEqual({ total: 40 * mib, available: 30 * mib, cpus: 7 });
    expect(limits(version2, root)).toEqual({ total: 40 * mib, available: 30 * mib, cpus: 7 });
    expect(limits(['0::/'], root)).toEqual({ total: 40 * mib, available: 30 * mib, cpus: 7 });
    expect(limits(['0::/'], { ...own, ...parent })).toEqual(none);
    // Both versions at once.
    const old = { 'memory/a/memory.limit_in_bytes': 30 * mib, 'memory/a/memory.usage_in_bytes': 5 * mib };
    expect(limits(['3:memory:/a/b', ...version2], { ...own, ...old })).toEqual({
      total: 30 * mib,
      available: 25 * mib,
      cpus: 9,
    });
  });
});
