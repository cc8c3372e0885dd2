// Tests test/tools/sass.js and test/tools/check-sass.js: the counts of a kernel's main loops on three
// short kernels written for this test, and the failure of the check against a table with better
// figures. Needs no disassembler.

import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { projectRoot } from '../support/fixtures';

interface MainLoop {
  address: number;
  depth: number;
  instructions: number;
  hmma: number;
  ldgsts: number;
  loads: number;
  inFlightAtFirstWait: number;
  inFlightAtMost: number;
  inFlightAtLeast: number;
  copiesInFlight: number;
  carriedMoves: number;
  barriers: number;
  spills: number;
}
type Kernels = Record<string, Partial<MainLoop>[]>;
const { readSass } = require('./sass.js') as {
  readSass(text: string): { name: string; loops: MainLoop[] }[];
};
const { LEEWAY, checkSass, compareLoops } = require('./check-sass.js') as {
  LEEWAY: number;
  checkSass(options: object): number;
  compareLoops(committed: Kernels, measured: Kernels): { worse: string[]; better: string[] };
};

/**
 * A function as `nvdisasm -c -hex` prints it. A line that ends with a colon is a label. '{sets 3}'
 * and '{waits 0 3}' after an instruction name the scoreboards of its encoding.
 */
function listing(name: string, lines: string): string {
  let address = 0;
  const body = lines.split('\n').flatMap((line) => {
    const text = line.replace(/\{.*\}/, '').trim();
    if (text === '') return [];
    if (text.endsWith(':')) return [text];
    const sets = BigInt(/\{sets (\d)/.exec(line)?.[1] ?? 7);
    const waits = [...(/\{waits ([\d ]+)/.exec(line)?.[1] ?? '').matchAll(/\d/g)].map(([digit]) => 1n << BigInt(digit));
    const second = (sets << 46n) | (waits.reduce((a, b) => a | b, 0n) << 52n);
    const at = address.toString(16).padStart(4, '0');
    address += 16;
    const words = [0n, second].map((word) => `/* 0x${word.toString(16).padStart(16, '0')} */`);
    return [
      `        /*${at}*/                   ${`${text} ;`.padEnd(60)} ${words[0]}`,
      `${' '.repeat(92)}${words[1]}`,
    ];
  });
  const head = `.text.${name}:\n        .type           ${name},@function\n${name}:\n`;
  return `\t.section\t.text.${name},"ax",@progbits\n${head}${body.join('\n')}\n`;
}

// A product of one row. The weights of the next iteration are loaded into R20 to R27 and moved to
// R8 to R15, where this iteration reads them. x is loaded into R16.
const PREFETCH = `
  LDC R1, c[0x0][0x28]
  @!P1 LDG.E.128.CONSTANT R8, desc[UR4][R2.64]
  @!P1 LDG.E.128.CONSTANT R12, desc[UR4][R2.64+0x40]
  @P0 BRA \`(.L_x_1)
.L_x_0:
  LDG.E.128 R16, desc[UR4][R4.64] {sets 0}
  LDG.E.128.CONSTANT R20, desc[UR4][R2.64+0x80] {sets 1}
  LDG.E.128.CONSTANT R24, desc[UR4][R2.64+0xc0] {sets 1}
  HMMA.16816.F32.BF16 R28, R8, R16, R28 {waits 0}
  HMMA.16816.F32.BF16 R32, R12, R18, R32
  IADD3 R2, P2, R2, 0x80, RZ
  ISETP.GE.U32.AND P0, PT, R2, R6, PT
  IMAD.MOV.U32 R8, RZ, RZ, R20 {waits 1}
  MOV R9, R21
  IMAD.MOV.U32 R10, RZ, RZ, R22
  IMAD.MOV.U32 R11, RZ, RZ, R23
  IMAD.MOV.U32 R12, RZ, RZ, R24
  IMAD.MOV.U32 R13, RZ, RZ, R25
  IMAD.MOV.U32 R14, RZ, RZ, R26
  IMAD.MOV.U32 R15, RZ, RZ, R27
  @!P0 BRA \`(.L_x_0)
.L_x_1:
  STG.E.128 desc[UR4][R4.64], R28
  EXIT
.L_x_2:
  BRA \`(.L_x_2)
`;

// The same with two sets of registers and two pieces per iteration: no moves, and each set is
// loaded one piece ahead.
const TWO_SETS = `
  LDG.E.128.CONSTANT R8, desc[UR4][R2.64] {sets 1}
.L_x_0:
  LDG.E.128 R16, desc[UR4][R4.64] {sets 0}
  LDG.E.128.CONSTANT R20, desc[UR4][R2.64+0x40] {sets 2}
  HMMA.16816.F32.BF16 R28, R8, R16, R28 {waits 0 1}
  LDG.E.128 R36, desc[UR4][R4.64+0x40] {sets 0}
  LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x80] {sets 1}
  HMMA.16816.F32.BF16 R28, R20, R36, R28 {waits 0 2}
  IADD3 R2, P2, R2, 0x80, RZ
  @!P0 BRA \`(.L_x_0)
  EXIT
`;

// One tile per iteration. The loop over pieces copies the tile to shared memory with 10
// instructions, one of them LDGSTS; the tile loop multiplies. Diverged threads take the path at
// .L_x_9, which is not part of the loop.
const TILES = `
  S2R R0, SR_TID.X
.L_x_3:
  LDG.E R40, desc[UR6][R6.64] {sets 0}
  BSSY B0, \`(.L_x_5)
.L_x_4:
  IADD3 R10, R10, 0x1, RZ
  IMAD.WIDE R12, R10, R11, R40 {waits 0}
  LEA R14, P1, R12, UR4, 0x1
  LEA.HI.X R15, R12, UR5, R13, 0x1, P1
  IMAD.SHL.U32 R16, R10, 0x10, RZ
  LOP3.LUT R16, R16, R17, RZ, 0x3c, !PT
  IADD3 R16, R16, R18, RZ
  LDGSTS.E.BYPASS.LTC128B.128 [R16], desc[UR6][R14.64]
  ISETP.GE.AND P0, PT, R10, R9, PT
  @!P0 BRA \`(.L_x_4)
  BSYNC B0
.L_x_5:
  LDGDEPBAR
  DEPBAR.LE SB0, 0x1
  BAR.SYNC.DEFER_BLOCKING 0x0
  LDSM.16.M88.4 R20, [R19]
  LDSM.16.M88.2 R24, [R19+0x200]
  BRA.DIV UR8, \`(.L_x_9)
  SHFL.BFLY PT, R30, R28, 0x1, 0x1f
.L_x_6:
  @P3 BRA \`(.L_x_8)
  STL [R1], R30
.L_x_8:
  HMMA.16816.F32.BF16 R32, R20, R24, RZ
  HMMA.16816.F32.BF16 R36, R20, R24, R36
  ISETP.GE.AND P2, PT, R8, R7, PT
  @!P2 BRA \`(.L_x_3)
  EXIT
.L_x_9:
  MOV R30, 0x1
  WARPSYNC.COLLECTIVE R29, \`(.L_x_10)
  SHFL.BFLY P1, R30, R28, R30, R31
.L_x_10:
  BRA \`(.L_x_6)
`;

// A ring of slots of two copies each, filled again after the product. WAIT leaves three groups in
// flight.
const RING = `
.L_x_0:
  DEPBAR.LE SB0, 0x3
  LDS.128 R8, [R19]
  LDS.128 R12, [R19+0x200]
  HMMA.16816.F32.BF16 R28, R8, R16, R28
  @P1 LDGSTS.E.BYPASS.LTC256B.128 [R19], desc[UR6][R14.64], P3
  @P1 LDGSTS.E.BYPASS.LTC256B.128 [R19+0x200], desc[UR6][R14.64+0x40], P3
  LDGDEPBAR
  @!P0 BRA \`(.L_x_0)
  EXIT
`;

const only = (text: string): Partial<MainLoop> => {
  const [found, ...others] = readSass(listing('kernel', text));
  expect(others).toEqual([]);
  expect(found?.loops).toHaveLength(1);
  return found?.loops[0] as MainLoop;
};

describe('the reader of SASS', () => {
  it('counts a loop whose prefetch is moved before the back-edge', () => {
    expect(only(PREFETCH)).toEqual({
      address: 0x40,
      depth: 1,
      instructions: 16,
      hmma: 2,
      ldgsts: 0,
      loads: 3,
      inFlightAtFirstWait: 3,
      inFlightAtMost: 3,
      inFlightAtLeast: 0,
      copiesInFlight: 0,
      carriedMoves: 8,
      barriers: 0,
      spills: 0,
    });
  });

  it('counts loads over the back-edge', () => {
    // Before each HMMA: a set from the piece before, x, the next set; after it the next set.
    const counts = { instructions: 8, hmma: 2, loads: 4, inFlightAtFirstWait: 3, inFlightAtMost: 3, carriedMoves: 0 };
    expect(only(TWO_SETS)).toMatchObject({ ...counts, inFlightAtLeast: 1 });
  });

  it('detects a prefetch that shares its scoreboard with a load that is waited for', () => {
    const shared = TWO_SETS.replaceAll('{sets 2}', '{sets 1}').replaceAll('{waits 0 2}', '{waits 0 1}');
    expect(only(shared)).toMatchObject({ inFlightAtFirstWait: 2, inFlightAtMost: 2, inFlightAtLeast: 0 });
  });

  it.each([
    ['the slot that was multiplied', RING, 8],
    ['two slots later', RING.replace('SB0, 0x3', 'SB0, 0x1'), 4],
    ['with a wait for all', RING.replace('SB0, 0x3', 'SB0, 0x0'), 2],
    [
      'twice before a wait',
      RING.replace('  LDGDEPBAR\n', '  LDGDEPBAR\n  LDGSTS.E.128 [R19], [R14.64]\n  LDGDEPBAR\n'),
      7,
    ],
    ['with an empty group', RING.replace('  LDGDEPBAR\n', '  LDGDEPBAR\n  LDGDEPBAR\n'), 4],
    ['with a wait for something else', RING.replace('DEPBAR.LE SB0', 'DEPBAR.LE SB1'), 0],
  ])('counts the copies in flight of a ring that fills %s', (_, text, copies) => {
    expect(only(text)).toMatchObject({ ldgsts: expect.any(Number), copiesInFlight: copies });
  });

  it.each([
    ['a wait after the first load', 'IADD3 R50, R19, 0x1, RZ {waits 0}', 1],
    ['a wait for something else', 'IADD3 R50, R51, R52, RZ {waits 3 5}', 3],
    ['a short load, such as a page', 'LDG.E R50, desc[UR4][R52.64] {sets 4}\n  IADD3 R51, R50, 0x1, RZ {waits 4}', 3],
  ])('loads in flight at the first wait: %s', (_, lines, inFlight) => {
    const first = '  LDG.E.128 R16, desc[UR4][R4.64] {sets 0}\n';
    expect(PREFETCH).toContain(first);
    expect(only(PREFETCH.replace(first, `${first}  ${lines}\n`))).toMatchObject({ inFlightAtFirstWait: inFlight });
  });

  it.each([
    ['read before the back-edge', '  @!P0 BRA `(.L_x_0)\n', '  IADD3 R50, R8, R9, RZ\n  @!P0 BRA `(.L_x_0)\n', 6],
    ['of a value that the iteration computed', 'MOV R9, R21', 'MOV R9, R2', 7],
    ['of a value from before the loop', 'MOV R9, R21', 'MOV R9, R50', 7],
    ['of a constant', 'MOV R9, R21', 'MOV R9, 0x8', 7],
    ['that negates', 'IMAD.MOV.U32 R10, RZ, RZ, R22', 'IMAD.MOV R10, RZ, RZ, -R22', 7],
    ['that no iteration reads', 'MOV R9, R21', 'MOV R60, R21', 7],
  ])('does not count a move %s', (_, from, to, moves) => {
    expect(PREFETCH).toContain(from);
    expect(only(PREFETCH.replace(from, to))).toMatchObject({ carriedMoves: moves });
  });

  it('counts nested loops separately, without the path of diverged threads', () => {
    const [kernel] = readSass(listing('tiles', TILES));
    expect(kernel?.loops).toEqual([
      expect.objectContaining({ depth: 1, instructions: 16, hmma: 2, ldgsts: 0, loads: 1, barriers: 1, spills: 1 }),
      expect.objectContaining({ depth: 2, instructions: 10, hmma: 0, ldgsts: 1, loads: 0, barriers: 0, spills: 0 }),
    ]);
  });

  it('reads several functions, and finds no main loop in a function without one', () => {
    const text = `\t.target\tsm_90a\n${listing('tiles', TILES)}${listing('copy', 'LDG.E.128 R4, desc[UR4][R2.64]\nEXIT')}`;
    expect(readSass(text).map(({ name, loops }) => [name, loops.length])).toEqual([
      ['tiles', 2],
      ['copy', 0],
    ]);
  });

  it('rejects input that it cannot parse', () => {
    expect(() => readSass(listing('kernel', 'BRX R4 -0x10\nEXIT'))).toThrow('a branch without a label');
    expect(() => readSass('.text.kernel:\n        /*0000*/                   EXIT ;')).toThrow('with its encoding');
    expect(() => readSass(listing('kernel', 'BRA `(.L_x_7)\nEXIT'))).toThrow('no label .L_x_7');
    const twoEntries = '@P0 BRA `(.L_x_1)\n.L_x_0:\nNOP\n.L_x_1:\nNOP\n@P1 BRA `(.L_x_0)\nEXIT';
    expect(() => readSass(listing('kernel', twoEntries))).toThrow('a loop with two entries');
  });
});

describe('the comparison with the committed table', () => {
  const loop = {
    instructions: 1000,
    hmma: 32,
    ldgsts: 16,
    loads: 12,
    inFlightAtFirstWait: 8,
    inFlightAtMost: 11,
    inFlightAtLeast: 2,
    copiesInFlight: 8,
  };
  const compare = (change: Partial<MainLoop>) => compareLoops({ k: [loop] }, { k: [{ ...loop, ...change }] });

  it('finds no difference between equal tables, and treats a missing count as 0', () => {
    expect(compare({ carriedMoves: 0, barriers: 0, spills: 0 })).toEqual({ worse: [], better: [] });
  });

  it('allows more instructions only within the leeway', () => {
    expect(compare({ instructions: 1000 * (1 + LEEWAY) })).toEqual({ worse: [], better: [] });
    expect(compare({ instructions: 1000 * (1 + LEEWAY) + 1 })).toEqual({
      worse: ['k: loop 1: instructions per HMMA 31.25 -> 31.91', 'k: loop 1: instructions per LDGSTS 62.5 -> 63.81'],
      better: [],
    });
    expect(compare({ instructions: 900 })).toMatchObject({ worse: [], better: [expect.anything(), expect.anything()] });
    expect(compare({ instructions: undefined }).worse).toHaveLength(2);
  });

  it.each([
    ['inFlightAtFirstWait', 7, 9],
    ['inFlightAtMost', 10, 12],
    ['inFlightAtLeast', 1, 3],
    ['copiesInFlight', 7, 9],
  ])('%s: counts one fewer as worse and one more as better', (name, fewer, more) => {
    expect(compare({ [name]: fewer })).toMatchObject({
      worse: [expect.stringContaining('in flight at')],
      better: [],
    });
    expect(compare({ [name]: more })).toMatchObject({
      worse: [],
      better: [expect.stringContaining('in flight at')],
    });
  });

  it.each(['carriedMoves', 'spills'])('%s: counts one as worse than none', (name) => {
    expect(compare({ [name]: 1 }).worse).toEqual([expect.stringMatching(/ 0 -> 1$/)]);
  });

  it('counts a kernel or a loop that only one side has as worse', () => {
    expect(compareLoops({ k: [loop] }, {}).worse).toEqual(['k: in the committed table, but not compiled']);
    expect(compareLoops({}, { k: [loop] }).worse).toEqual(['k: not in the committed table']);
    const one = { instructions: 20, ldgsts: 1 };
    expect(compareLoops({ k: [loop, one] }, { k: [loop] }).worse).toEqual([
      'k: other main loops: [hmma+ldgsts+loads, ldgsts] -> [hmma+ldgsts+loads]',
    ]);
  });
});

describe('the check', () => {
  const folder = mkdtempSync(join(tmpdir(), 'diffqkv-sass-'));
  const table = join(folder, 'table.json');
  const cubin = join(folder, 'a.cubin');
  const program = join(folder, 'disassemble');
  beforeAll(() => {
    // A replacement for the disassembler that prints the file.
    writeFileSync(program, '#!/bin/sh\nexec cat "$3"\n');
    chmodSync(program, 0o755);
    writeFileSync(cubin, listing('_Zprefetch', PREFETCH) + listing('_Ztiles', TILES));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  /** Returns the check's output and the number of worse figures. */
  function check(options: object = {}): { worse: number; printed: string } {
    let printed = '';
    const log = jest.spyOn(console, 'log').mockImplementation((line) => {
      printed += `${line}\n`;
    });
    try {
      const worse = checkSass({
        disassembler: { program, version: '1' },
        architecture: 'sm_90a',
        nvcc: 'release 1.2, V1.2.3',
        builds: [{ file: 'a.cu', cubin }],
        nameOf: (name: string) => name.replace('_Z', ''),
        table,
        ...options,
      });
      return { worse, printed };
    } finally {
      log.mockRestore();
    }
  }

  it('writes a table that it then agrees with', () => {
    expect(check()).toMatchObject({ worse: 0, printed: expect.stringContaining('not compared: there is no') });
    check({ write: true });
    const { nvcc, kernels } = JSON.parse(readFileSync(table, 'utf8'));
    expect(nvcc).toBe('release 1.2, V1.2.3');
    expect(Object.keys(kernels)).toEqual(['a.cu prefetch', 'a.cu tiles']);
    const { worse, printed } = check();
    expect({ worse, printed }).toEqual({ worse: 0, printed: expect.stringContaining('0 figures worse, 0 better') });
    expect(printed).toMatch(/^ +0x40 +1 +16 +2 +8\.0 +- +- +3 +3 +3 +- +- +8 +- +-$/m);
  });

  it('fails against a better table, and says where', () => {
    check({ write: true });
    const text = readFileSync(table, 'utf8');
    writeFileSync(
      table,
      text.replace('"carriedMoves":8', '"carriedMoves":0').replace('"instructions":10,', '"instructions":8,'),
    );
    const { worse, printed } = check();
    expect(worse).toBe(2);
    expect(printed).toContain('worse: a.cu prefetch: loop 1: moves from loads before the back-edge 0 -> 8\n');
    expect(printed).toContain('worse: a.cu tiles: loop 2: instructions per LDGSTS 8 -> 10\n');
  });

  it('compares nothing against the table of another nvcc or without kernel names', () => {
    check({ write: true });
    writeFileSync(table, readFileSync(table, 'utf8').replace('"carriedMoves":8', '"carriedMoves":0'));
    expect(check()).toMatchObject({ worse: 1 });
    expect(check({ nvcc: 'release 1.3, V1.3.1' })).toMatchObject({
      worse: 0,
      printed: expect.stringContaining('is of nvcc release 1.2, V1.2.3'),
    });
    expect(check({ nameOf: (name: string) => name })).toMatchObject({
      worse: 0,
      printed: expect.stringContaining('no c++filt'),
    });
  });
});

it('the committed table has the loops of every kernel that multiplies', () => {
  const file = join(projectRoot, 'bench', 'results', 'sass-sm_90a.json');
  const { architecture, kernels } = JSON.parse(readFileSync(file, 'utf8')) as {
    architecture: string;
    kernels: Kernels;
  };
  expect(architecture).toBe('sm_90a');
  for (const stem of ['gemv', 'gemv_packed', 'gemm', 'attention_decode', 'attention_prefill', 'attention_selective'])
    expect(Object.keys(kernels).some((name) => name.startsWith(`${stem}.cu `))).toBe(true);
  expect(compareLoops(kernels, kernels)).toEqual({ worse: [], better: [] });
});
