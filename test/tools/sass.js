// Reads SASS, the machine code of NVIDIA GPUs, as `nvdisasm -c -hex` prints it, and counts what a
// kernel's main loops issue.
//
// A main loop is a natural loop that contains a tensor-core instruction (HMMA), an asynchronous
// copy to shared memory (LDGSTS) or a 16-byte global load (LDG.128) outside of the loops nested in
// it. Every count excludes nested loops. The counts are static: both sides of a branch count, in
// the order of the instructions' addresses.
//
// Bits 41 to 63 of an instruction's second word are not in the text. They name the scoreboard that
// a load increments until its data arrives, and the scoreboards that an instruction waits for.
// There are only six, so loads share them: a warp that waits for one load may then wait for others.
// (Volta to Blackwell; not documented by NVIDIA.)
'use strict';

/**
 * @typedef {object} Instruction
 * @property {number} address
 * @property {string} predicate '' if none, else for example '@!P0'
 * @property {string} opcode with its modifiers, for example 'LDG.E.128'
 * @property {string} name the opcode without modifiers
 * @property {string[]} operands
 * @property {string[]} targets labels that a branch may go to
 * @property {number} scoreboard 0 to 5, or 7 if it counts none up
 * @property {number} waits a bit for each scoreboard that it waits for
 */

const BRANCHES = new Set(['BRA', 'BRX', 'JMP', 'JMX']);
// The first operand of these opcodes is not a destination.
const NO_DESTINATION = new Set(
  (
    'ST STG STS STL RED REDG LDGSTS BRA BRX JMP JMX CALL RET EXIT BPT BAR WARPSYNC NANOSLEEP MEMBAR CCTL ERRBAR ' +
    'DEPBAR LDGDEPBAR BSSY BSYNC BREAK R2P NOP SYNCS UBLKCP'
  ).split(' '),
);
// These opcodes may write a predicate before their register.
const PREDICATE_FIRST = new Set(['SHFL', 'ATOM', 'ATOMG', 'ATOMS', 'MATCH', 'VOTE']);

/** Splits operands at the commas outside brackets. */
function splitOperands(text) {
  const operands = [];
  let depth = 0;
  let start = 0;
  for (let i = 0; i <= text.length; i++) {
    const c = text[i];
    if (c === '[' || c === '(' || c === '{') depth++;
    else if (c === ']' || c === ')' || c === '}') depth--;
    else if ((c === ',' && depth === 0) || i === text.length) {
      const operand = text.slice(start, i).trim();
      if (operand) operands.push(operand);
      start = i + 1;
    }
  }
  return operands;
}

/** @returns {Instruction} */
function parseInstruction(address, text) {
  const [, predicate = '', opcode, rest] = /^(@!?U?P\w+)?\s*([A-Z][\w.]*)\s*(.*)$/.exec(text) ?? [];
  if (!opcode) throw new Error(`not an instruction: '${text}'`);
  const name = opcode.split('.', 1)[0];
  const targets = BRANCHES.has(name) ? (rest.match(/\.L_\w+/g) ?? []) : [];
  if (BRANCHES.has(name) && targets.length === 0) throw new Error(`a branch without a label: '${text}'`);
  return { address, predicate, opcode, name, operands: splitOperands(rest.replace(/^;|\s*;$/, '')), targets };
}

/**
 * Functions by name. A device function that is called from a kernel is part of the kernel's
 * section; no edge leads to it.
 * @returns {{name: string, instructions: Instruction[], labels: Map<string, number>}[]} labels: index of an instruction
 */
function parseFunctions(text) {
  const functions = [];
  let current;
  for (const line of text.split('\n')) {
    const section = /^\.text\.(\S+):/.exec(line);
    if (section) {
      current = { name: section[1], instructions: [], labels: new Map() };
      functions.push(current);
      continue;
    }
    const label = /^(\.L_\w+):/.exec(line);
    if (label) {
      current?.labels.set(label[1], current.instructions.length);
      continue;
    }
    const instruction = /^\s*\/\*([0-9a-f]{4,})\*\/\s*(.*?)\s*\/\* 0x[0-9a-f]{16} \*\/$/.exec(line);
    if (instruction) {
      if (!current) throw new Error(`an instruction before the first function: '${line}'`);
      current.instructions.push(parseInstruction(Number.parseInt(instruction[1], 16), instruction[2]));
      continue;
    }
    const second = /^\s*\/\* (0x[0-9a-f]{16}) \*\/$/.exec(line);
    if (second) {
      const control = Number(BigInt(second[1]) >> 41n);
      Object.assign(current.instructions.at(-1), { scoreboard: (control >> 5) & 7, waits: (control >> 11) & 63 });
    } else if (/^\s*\/\*/.test(line)) {
      throw new Error(`not an instruction with its encoding: '${line}'`);
    }
  }
  return functions;
}

const endsBlock = ({ name }) => BRANCHES.has(name) || name === 'EXIT' || name === 'RET';
// 'BRA P0, `(label)' has its condition among the operands, as does 'BRA.DIV'.
const fallsThrough = (instruction) =>
  !endsBlock(instruction) ||
  instruction.predicate !== '' ||
  (instruction.name === 'BRA' && instruction.operands.length > 1);

/** Basic blocks in the order of addresses: [first, end) indices of instructions and the indices of successors. */
function basicBlocks({ instructions, labels, name }) {
  const starts = new Set([0]);
  for (const [i, instruction] of instructions.entries()) {
    if (endsBlock(instruction)) starts.add(i + 1);
    for (const target of instruction.targets) {
      if (!labels.has(target)) throw new Error(`${name}: no label ${target}`);
      starts.add(labels.get(target));
    }
  }
  const firsts = [...starts].filter((i) => i < instructions.length).sort((a, b) => a - b);
  const blockAt = new Map(firsts.map((first, block) => [first, block]));
  return firsts.map((first, block) => {
    const end = firsts[block + 1] ?? instructions.length;
    const last = instructions[end - 1];
    const successors = [];
    // Diverged threads of a warp take BRA.DIV. That path is out of line and is not counted.
    if (last.opcode !== 'BRA.DIV') {
      for (const target of last.targets) {
        const index = labels.get(target);
        if (index < instructions.length) successors.push(blockAt.get(index));
      }
    }
    if (fallsThrough(last) && end < instructions.length) successors.push(block + 1);
    return { first, end, successors };
  });
}

/** Natural loops: [{header, blocks: Set}], outer before inner. */
function naturalLoops(blocks, name) {
  const order = [];
  const seen = new Set([0]);
  const stack = [[0, 0]];
  while (stack.length > 0) {
    const top = stack[stack.length - 1];
    const next = blocks[top[0]].successors[top[1]++];
    if (next === undefined) order.push(stack.pop()[0]);
    else if (!seen.has(next)) {
      seen.add(next);
      stack.push([next, 0]);
    }
  }
  order.reverse();
  const rank = new Map(order.map((block, i) => [block, i]));
  const predecessors = new Map(order.map((block) => [block, []]));
  for (const block of order) for (const next of blocks[block].successors) predecessors.get(next).push(block);

  // Immediate dominators, by iteration over the reverse postorder (Cooper, Harvey, Kennedy).
  const dominator = new Map([[0, 0]]);
  const intersect = (a, b) => {
    while (a !== b) {
      while (rank.get(a) > rank.get(b)) a = dominator.get(a);
      while (rank.get(b) > rank.get(a)) b = dominator.get(b);
    }
    return a;
  };
  for (let changed = true; changed; ) {
    changed = false;
    for (const block of order.slice(1)) {
      const found = predecessors
        .get(block)
        .filter((p) => dominator.has(p))
        .reduce(intersect);
      if (dominator.get(block) !== found) {
        dominator.set(block, found);
        changed = true;
      }
    }
  }
  const dominates = (a, b) => {
    while (rank.get(b) > rank.get(a)) b = dominator.get(b);
    return a === b;
  };

  const loops = new Map();
  for (const block of order) {
    for (const header of blocks[block].successors) {
      if (rank.get(header) > rank.get(block)) continue;
      if (!dominates(header, block)) throw new Error(`${name}: a loop with two entries is not supported`);
      if (!loops.has(header)) loops.set(header, { header, blocks: new Set([header]) });
      const body = loops.get(header).blocks;
      const pending = [block];
      while (pending.length > 0) {
        const inside = pending.pop();
        if (body.has(inside)) continue;
        body.add(inside);
        pending.push(...predecessors.get(inside));
      }
    }
  }
  return [...loops.values()].sort((a, b) => b.blocks.size - a.blocks.size);
}

/** The number of registers that an operand names. */
function width({ name, opcode }, operand, position) {
  if (/R\d+\.64\b/.test(operand)) return 2;
  if (operand.includes('[')) return 1; // the address of a load, or an index into constants
  if (/^D(ADD|FMA|MUL|SETP|MNMX)$/.test(name) || /\.[FUS]64/.test(opcode)) return 2;
  if (name === 'HMMA') {
    const sizes = /\.16816\./.test(opcode) ? [4, 4, 2, 4] : [4, 2, 1, 4];
    return position === 0 && /\.F16$/.test(opcode) ? 2 : (sizes[position] ?? 1);
  }
  if (name === 'IMAD' && opcode.includes('.WIDE')) return position === 0 || position >= 3 ? 2 : 1;
  if (name === 'CS2R') return opcode.includes('.32') ? 1 : 2;
  if (name === 'LDSM') return Number(/\.([124])$/.exec(opcode)?.[1] ?? 1);
  if (/^(LD|ST|ATOM|RED)/.test(name)) return Number(/\.(64|128)\b/.exec(opcode)?.[1] ?? 32) / 32;
  return 1;
}

const firstRegister = (operand) => /(?<![\w.])R(\d+)/.exec(operand)?.[1];

/** Registers that an instruction writes and reads. */
function registers(instruction) {
  const { operands, name } = instruction;
  const range = (operand, position) => {
    const first = firstRegister(operand);
    if (first === undefined) return [];
    const count = width(instruction, operand, position);
    return Array.from({ length: count }, (_, i) => Number(first) + i);
  };
  let destination = -1;
  if (!NO_DESTINATION.has(name)) {
    const predicates = operands.findIndex((operand) => !/^!?U?P(\d|T|R)/.test(operand));
    if (predicates === 0 || (predicates === 1 && PREDICATE_FIRST.has(name))) destination = predicates;
  }
  const writes = destination >= 0 ? range(operands[destination], 0) : [];
  const reads = operands.flatMap((operand, i) =>
    i === destination ? [] : range(operand, i - Math.max(destination, 0)),
  );
  return { writes, reads };
}

/** The groups of copies that a wait leaves in flight; undefined if the instruction is no such wait. */
function groupsLeft({ opcode, operands }) {
  if (opcode !== 'DEPBAR.LE' || operands[0] !== 'SB0') return undefined;
  return Number(operands[1]);
}

const isLoad = ({ name }) => name === 'LDG' || name === 'LD';
const isWide = ({ opcode }) => /\.128\b/.test(opcode);

/** The register that an instruction copies, or undefined. */
function copied({ name, opcode, operands }) {
  if (name === 'MOV') return /^R\d+/.test(operands[1] ?? '') ? Number(firstRegister(operands[1])) : undefined;
  if (/^IMAD\.MOV(\.U32)?$/.test(opcode) && operands[1] === 'RZ' && operands[2] === 'RZ' && /^R\d+/.test(operands[3]))
    return Number(firstRegister(operands[3]));
  return undefined;
}

/**
 * The number of the loop's global loads that are in flight when the warp first waits for one of
 * them, when it waits for any, and after such a wait. The warp runs through the loop repeatedly, so
 * loads from before the back-edge count. An effective prefetch leaves loads in flight after every
 * wait. Counts only 16-byte loads if the loop has any, because the lookup of a page is not part of
 * the stream.
 * @returns {{atFirstWait: number, atMost: number, atLeast: number}}
 */
function loadsInFlight(body, own) {
  const loads = body.filter((instruction) => own.has(instruction) && isLoad(instruction));
  const tracked = new Set(loads.some(isWide) ? loads.filter(isWide) : loads);
  const start = body.findIndex((instruction) => tracked.has(instruction));
  if (start < 0) return { atFirstWait: 0, atMost: 0, atLeast: 0 };
  const iteration = [...body.slice(start), ...body.slice(0, start)];
  let pending = [];
  const run = () => {
    const waits = [];
    for (const instruction of iteration) {
      const left = pending.filter(({ scoreboard }) => ((instruction.waits >> scoreboard) & 1) === 0);
      if (left.length < pending.length) waits.push({ before: pending.length, after: left.length });
      pending = left;
      if (tracked.has(instruction)) pending.push(instruction);
    }
    return waits;
  };
  run();
  const waits = run();
  // Without a wait, nothing in the loop uses the loads.
  if (waits.length === 0) waits.push({ before: pending.length, after: pending.length });
  return {
    atFirstWait: waits[0].before,
    atMost: Math.max(...waits.map(({ before }) => before)),
    atLeast: Math.min(...waits.map(({ after }) => after)),
  };
}

/**
 * The number of the loop's asynchronous copies (LDGSTS) that are in flight when the warp waits for
 * a group of them for the first time in an iteration. LDGDEPBAR closes a group; DEPBAR.LE SB0, N
 * waits until N groups are left. Copies of earlier iterations count, and the loop runs until it
 * waits for its own, so the count is that of a long loop.
 */
function copiesInFlight(body, own) {
  let closed = [];
  let open = 0;
  let first = 0;
  const run = () => {
    first = undefined;
    for (const { instruction, left } of steps) {
      if (instruction.name === 'LDGSTS') open++;
      else if (instruction.name === 'LDGDEPBAR') {
        closed.push(open);
        open = 0;
      } else {
        first ??= closed.reduce((a, b) => a + b, open);
        closed = left > 0 ? closed.slice(-left) : [];
      }
    }
  };
  const steps = body
    .filter((instruction) => own.has(instruction))
    .map((instruction) => ({ instruction, left: groupsLeft(instruction) }))
    .filter(({ instruction, left }) => left !== undefined || /^LDG(STS|DEPBAR)$/.test(instruction.name));
  const waits = steps.flatMap(({ left }) => left ?? []);
  if (waits.length === 0) return 0;
  for (let i = 0; i < Math.max(...waits) + 2; i++) run();
  return first;
}

/**
 * Copies, for the next iteration, of a register that a global load of the same iteration wrote.
 * Nothing reads the copy before the back-edge. The warp waits for the load at the copy, so the load
 * is not a prefetch.
 */
function carriedMoves(body, own) {
  let count = 0;
  for (const [i, move] of body.entries()) {
    const source = copied(move);
    if (source === undefined || !own.has(move)) continue;
    const definition = body.slice(0, i).findLast(({ registers: { writes } }) => writes.includes(source));
    if (!definition || !isLoad(definition)) continue;
    const [to] = move.registers.writes;
    const touches = ({ registers: { reads, writes } }) => reads.includes(to) || writes.includes(to);
    if (body.slice(i + 1).some(touches)) continue;
    const next = body.find(touches);
    if (next?.registers.reads.includes(to)) count++;
  }
  return count;
}

/**
 * @typedef {object} MainLoop
 * @property {number} address of its first instruction
 * @property {number} depth 1 if no loop is around it
 * @property {number} instructions
 * @property {number} hmma
 * @property {number} ldgsts
 * @property {number} loads global loads of any size
 * @property {number} inFlightAtFirstWait see loadsInFlight
 * @property {number} inFlightAtMost
 * @property {number} inFlightAtLeast
 * @property {number} copiesInFlight see copiesInFlight
 * @property {number} carriedMoves see carriedMoves
 * @property {number} barriers
 * @property {number} spills loads and stores of local memory
 */

/**
 * @param {string} text what `nvdisasm -c -hex` prints
 * @returns {{name: string, loops: MainLoop[]}[]} each function with its main loops in the order of their addresses
 */
function readSass(text) {
  return parseFunctions(text).map((parsed) => {
    const blocks = basicBlocks(parsed);
    const loops = naturalLoops(blocks, parsed.name);
    for (const instruction of parsed.instructions) instruction.registers = registers(instruction);
    const innermost = new Map();
    for (const loop of loops) for (const block of loop.blocks) innermost.set(block, loop);
    const instructionsOf = (indices) =>
      indices.flatMap((i) => parsed.instructions.slice(blocks[i].first, blocks[i].end));
    const rows = [];
    for (const loop of loops) {
      const inOrder = [...loop.blocks].sort((a, b) => a - b);
      const at = inOrder.indexOf(loop.header);
      const body = instructionsOf([...inOrder.slice(at), ...inOrder.slice(0, at)]);
      const own = new Set(instructionsOf(inOrder.filter((block) => innermost.get(block) === loop)));
      const count = (matches) => [...own].filter(matches).length;
      const hmma = count(({ name }) => name === 'HMMA');
      const ldgsts = count(({ name }) => name === 'LDGSTS');
      const wideLoads = count((instruction) => isLoad(instruction) && isWide(instruction));
      if (hmma + ldgsts + wideLoads === 0) continue;
      const { atFirstWait, atMost, atLeast } = loadsInFlight(body, own);
      rows.push({
        address: parsed.instructions[blocks[loop.header].first].address,
        depth: loops.filter((outer) => outer.blocks.has(loop.header)).length,
        instructions: own.size,
        hmma,
        ldgsts,
        loads: count(isLoad),
        inFlightAtFirstWait: atFirstWait,
        inFlightAtMost: atMost,
        inFlightAtLeast: atLeast,
        copiesInFlight: copiesInFlight(body, own),
        carriedMoves: carriedMoves(body, own),
        barriers: count(({ name }) => name === 'BAR'),
        spills: count(({ name }) => name === 'LDL' || name === 'STL'),
      });
    }
    return { name: parsed.name, loops: rows.sort((a, b) => a.address - b.address) };
  });
}

module.exports = { readSass };
