// Rooms: minimal Debian systems with only what debootstrap needs itself, entered by chroot, without
// network.
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { run } from './checks.mjs';

const withSbin = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };

/** The reason why no room can be made here, or ''. */
export function whyNot() {
  if (process.platform !== 'linux') return 'rooms need Linux';
  if (process.getuid() !== 0) return 'debootstrap and chroot need root';
  const missing = ['debootstrap', 'unshare', 'chroot'].filter(
    (program) => spawnSync('sh', ['-c', `command -v ${program}`], { env: withSbin }).status !== 0,
  );
  if (missing.length > 0) return `${missing.join(', ')} missing (apt-get install debootstrap)`;
  return spawnSync('unshare', ['--mount', '--net', '--pid', '--fork', 'true']).status === 0
    ? ''
    : 'this process may not create namespaces';
}

/**
 * A system of a suite as debootstrap makes it. `folder` caches it from run to run. Throws if it
 * cannot be made.
 */
export async function base(folder, suite, packages) {
  const path = join(folder, `base-${suite}-${packages.join('-')}`);
  if (existsSync(path)) return path;
  const partial = `${path}.partial`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  const include = `--include=${packages.join(',')}`;
  const args = ['--mount', 'debootstrap', '--variant=minbase', include, suite, partial];
  const { status, stdout } = await run('unshare', args, { env: withSbin });
  if (status !== 0) {
    rmSync(partial, { recursive: true, force: true });
    throw new Error(stdout.trim().split('\n').slice(-2).join(' '));
  }
  rmSync(join(partial, 'var', 'cache', 'apt', 'archives'), { recursive: true, force: true });
  renameSync(partial, path);
  return path;
}

export class Room {
  constructor(from, path) {
    this.path = path;
    rmSync(path, { recursive: true, force: true });
    mkdirSync(dirname(path), { recursive: true });
    const { status, stderr } = spawnSync('cp', ['-a', '--reflink=auto', from, path], { encoding: 'utf8' });
    if (status !== 0) throw new Error(stderr);
  }

  /** Copies a file or folder of this machine to a path in the room. */
  bring(from, to) {
    cpSync(from, join(this.path, to), { recursive: true, dereference: true, preserveTimestamps: true });
  }

  /**
   * Runs a command in the room, with only a disabled loopback interface and none of this machine's
   * environment.
   */
  run(command, args, { cwd = '/app', env = {}, seconds } = {}) {
    const enter = [
      'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev"',
      'exec chroot "$0" /usr/bin/env -i "$@"',
    ].join(' && ');
    const variables = { HOME: '/root', PATH: '/opt/bin:/usr/bin:/bin', LANG: 'C.UTF-8', ...env };
    const set = Object.entries(variables).map(([name, value]) => `${name}=${value}`);
    const within = ['/bin/sh', '-c', 'cd "$0" && exec "$@"', cwd, command, ...args];
    const namespaces = ['--mount', '--net', '--pid', '--fork', '--kill-child'];
    const inner = ['sh', '-c', enter, this.path, ...set, ...within];
    return run('unshare', [...namespaces, ...inner], { env: withSbin, seconds });
  }

  /** Lists what is in the room although a bare system must not have it. */
  whatItShouldLack() {
    const found = [];
    for (const folder of ['usr/bin', 'usr/local/bin', 'bin'])
      for (const name of existsSync(join(this.path, folder)) ? readdirSync(join(this.path, folder)) : [])
        if (/^(cc|gcc|g\+\+|c\+\+|clang|cmake|make|ninja|python3?|nvcc|node|npm)(-[\d.]+)?$/.test(name))
          found.push(name);
    const libraries = spawnSync('find', [join(this.path, 'usr'), '-name', '*.so*', '-printf', '%f\n'], {
      encoding: 'utf8',
    });
    for (const name of libraries.stdout.split('\n'))
      if (/^lib(gomp|OpenCL|dnnl|cuda|cudart)\b/.test(name)) found.push(name);
    return found;
  }

  remove() {
    rmSync(this.path, { recursive: true, force: true });
  }
}
