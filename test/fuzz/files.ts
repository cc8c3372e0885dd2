// The format of an input of the fuzz target `checkpoint` (see checkpoint.cc): a byte of options,
// then for each file a byte for its name, four bytes for its length, and its contents.

export const names = [
  'config.json',
  'generation_config.json',
  'model.safetensors',
  'model.safetensors.index.json',
  'a.safetensors',
  'b.safetensors',
] as const;

export function joinFiles(options: number, files: readonly [string, Uint8Array][]): Uint8Array {
  const pieces = [Buffer.of(options)];
  for (const [name, bytes] of files) {
    const head = Buffer.alloc(5);
    head[0] = (names as readonly string[]).indexOf(name);
    head.writeUInt32LE(bytes.length, 1);
    pieces.push(head, Buffer.from(bytes));
  }
  return Buffer.concat(pieces);
}

export function splitFiles(input: Buffer): [string, Uint8Array][] {
  const files: [string, Uint8Array][] = [];
  let at = 1;
  while (input.length - at >= 5 && files.length < 8) {
    const name = names[(input[at] as number) % names.length] as string;
    const length = Math.min(input.readUInt32LE(at + 1), input.length - at - 5);
    files.push([name, input.subarray(at + 5, at + 5 + length)]);
    at += 5 + length;
  }
  return files;
}
