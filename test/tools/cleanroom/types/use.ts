// A user's program in strict TypeScript, compiled as ES module and as CommonJS against the packed
// types, and run.
import {
  type ChatMessage,
  type Device,
  type DeviceInfo,
  DiffqkvError,
  type DType,
  defaultModelDirectory,
  type ErrorCode,
  type GenerateOptions,
  type GenerationResult,
  kernels,
  listDevices,
  Model,
  openDevice,
  type Session,
  type Tensor,
} from 'diffqkv';

async function attention(device: Device, dtype: DType): Promise<number> {
  using q: Tensor = device.tensor(dtype, [1, 2, 32], new Float32Array(64).fill(1));
  using k = device.tensor(dtype, [1, 3, 1, 32], new Float32Array(96).fill(1));
  using v = device.tensor(dtype, [1, 3, 2, 32], new Float32Array(192).fill(1));
  using out = await kernels.attentionDecode({ q, k, v, selectiveV: { topK: 2, renormalize: true } });
  const values: Float32Array = await out.read();
  return values[0] ?? Number.NaN;
}

async function generate(messages: ChatMessage[]): Promise<GenerationResult> {
  using model = await Model.load(defaultModelDirectory, {
    onProgress: ({ loadedBytes, totalBytes }) => void (loadedBytes / totalBytes),
    signal: new AbortController().signal,
  });
  using session: Session = await model.createSession({ maxKvLen: 256, vType: 'i8' });
  const options: GenerateOptions = { maxTokens: 8, temperature: 0, seed: 1n, session };
  const generation = model.generate(messages, options);
  for await (const { token, text } of generation) if (token < 0 || text === undefined) throw new Error('no token');
  return generation.result;
}

async function main(): Promise<void> {
  const devices: DeviceInfo[] = listDevices();
  let one: number;
  let disposed: Device;
  {
    using device = await openDevice('cpu');
    one = await attention(device, 'f32');
    disposed = device;
  }
  let code: ErrorCode | undefined;
  try {
    disposed.tensor('f32', [1]);
  } catch (error) {
    if (error instanceof DiffqkvError) code = error.code;
  }
  // @ts-expect-error: there is no such dtype
  const wrong: DType = 'f64';
  const { usage, finishReason } = await generate([{ role: 'user', content: '# tar\n' }]);
  const cpu = devices.some(({ kind, usable }) => kind === 'cpu' && usable);
  console.log(JSON.stringify({ cpu, one, code, wrong, tokens: usage.completionTokens, finishReason }));
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
