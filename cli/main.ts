#!/usr/bin/env node
// The command line. A command's module is loaded when the command runs, so that `build` and
// `--help` work without the native module.
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { CliError, errorLine } from './errors';
import { packageRoot } from './paths';

const { version } = JSON.parse(readFileSync(`${packageRoot}/package.json`, 'utf8')) as {
  version: string;
};

const program = new Command('diffqkv')
  .description('DiffQKV attention and Sigma models')
  .version(version)
  .showHelpAfterError(false)
  .exitOverride()
  .configureOutput({ writeErr: (text) => process.stderr.write(text), outputError: () => {} });

const number = (name: string) => (text: string) => {
  const value = Number(text);
  if (text.trim() === '' || Number.isNaN(value)) {
    throw new CliError('ERR_INVALID_ARGUMENT', `${name} must be a number, not '${text}'`);
  }
  return value;
};

const integer = (name: string) => (text: string) => {
  if (!/^[+-]?\d+$/.test(text))
    throw new CliError('ERR_INVALID_ARGUMENT', `${name} must be an integer, not '${text}'`);
  return BigInt(text);
};

const hubHelp = `
The cache is the one of Python's huggingface_hub. Environment: HF_TOKEN, HF_ENDPOINT, HF_HUB_CACHE,
HF_HOME, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT (seconds).`;

const generateCommand = program
  .command('generate')
  .description('generate text: write it to stdout as it is generated, timings to stderr')
  .option(
    '--model <model>',
    'a directory or hub id, org/name[@revision] (default: the embedded model)',
  )
  .option('--prompt <text>', 'the prompt (default: standard input)')
  .option('--chat', "format the prompt as a user message with the model's chat template")
  .option('--max-tokens <n>', 'maximum number of new tokens', number('--max-tokens'), 256)
  .option('--temperature <t>', 'divide the logits by t; 0: greedy', number('--temperature'), 0)
  .option('--top-k <n>', 'keep only the n most likely tokens; 0: all', number('--top-k'), 0)
  .option(
    '--top-p <p>',
    'keep only the most likely tokens whose probabilities add up to p',
    number('--top-p'),
    1,
  )
  .option(
    '--min-p <p>',
    'keep only tokens at least p times as likely as the most likely one',
    number('--min-p'),
    0,
  )
  .option(
    '--repetition-penalty <r>',
    'penalize tokens that are in the sequence already; 1: off',
    number('--repetition-penalty'),
    1,
  )
  .option('--seed <n>', 'the same seed gives the same text (default: random)', integer('--seed'))
  .option(
    '--stop <text>',
    'stop at this text; repeat the option for several texts',
    (text: string, before: string[]) => [...before, text],
    [],
  )
  .option(
    '--k-type <type>',
    "type of the K cache: f32, f16, bf16, i8, f8e4m3 (default: the model's dtype)",
  )
  .option('--v-type <type>', 'type of the V cache, likewise')
  .option(
    '--selective-v <k>',
    'read only the V rows of the k highest scores of each query head',
    number('--selective-v'),
  )
  .option('--renormalize', 'with --selective-v: scale the weights of the rows to sum 1')
  .option('--weight-type <type>', 'quantize the matrices as they are loaded: i8 or i4')
  .option(
    '--speculative <how>',
    'verify several proposed tokens in one step, for the same text: ngram proposes what followed ' +
      'before; a directory or hub id is a draft model',
  )
  .option('--device <id>', 'auto, cpu, cuda or cuda:N', 'auto')
  .option(
    '--threads <n>',
    'threads of the CPU device (default: the CPUs that it may use)',
    number('--threads'),
  )
  .option('--json', 'print one JSON object at the end instead of the text')
  .action(async (options) => {
    const { generate } = await import('./generate.js');
    process.exitCode = await generate(options);
  });

const chatCommand = program
  .command('chat')
  .description('chat with a model in the terminal; without one, each line of stdin is a message')
  .requiredOption('--model <model>', 'a directory or hub id, org/name[@revision]')
  .option('--system <text>', 'the system prompt')
  .option('--messages <file>', 'continue the conversation of this file, which /save has written')
  .option(
    '--max-kv-len <n>',
    "maximum number of tokens of the conversation in the cache (default: the model's context)",
    number('--max-kv-len'),
  )
  .action(async (options) => {
    const { chat } = await import('./chat.js');
    process.exitCode = await chat(options);
  });
// The other options are those of `generate`.
for (const option of generateCommand.options) {
  if (!['--model', '--prompt', '--chat', '--json'].includes(option.long as string)) {
    chatCommand.addOption(option);
  }
}

program
  .command('pull')
  .description('download a model from the hub into the cache, and print its directory')
  .argument('<id>', 'org/name or org/name@revision')
  .option('--json', 'print one JSON object')
  .addHelpText('after', hubHelp)
  .action(async (id: string, options) => {
    const { pull } = await import('./hub.js');
    process.exitCode = await pull(id, options);
  });

program
  .command('list')
  .description('list the models in the cache: id, commit, size, whether they load')
  .option('--json', 'print one JSON object')
  .addHelpText('after', hubHelp)
  .action(async (options) => {
    const { list } = await import('./hub.js');
    process.exitCode = await list(options);
  });

program
  .command('info')
  .description('print the devices; with a model, its architecture, size and KV bytes per token')
  .argument('[model]', 'a directory or hub id, org/name[@revision]; its weights are not read')
  .option('--model <model>', 'load this directory or hub id, and print its shape and memory')
  .option('--weight-type <type>', 'with --model: quantize its matrices to i8 or i4')
  .option('--device <id>', 'device for --model: auto, cpu, cuda or cuda:N', 'auto')
  .option('--json', 'print one JSON object')
  .action(async (source: string | undefined, options) => {
    if (source !== undefined) {
      const { describeModel } = await import('./hub.js');
      process.exitCode = await describeModel(source, options);
    } else {
      const { info } = await import('./info.js');
      process.exitCode = await info(options);
    }
  });

program
  .command('convert')
  .description(
    'convert a Llama or Sigma checkpoint to one with fewer or smaller K and V heads, or quantize one',
  )
  .argument('<in>', 'a directory, which is not modified, or a hub id, org/name[@revision]')
  .argument('<out>', 'output directory; it must not exist or must be empty')
  .option(
    '--key-heads <n>',
    'mean-pool the K heads to n, a divisor of their number',
    number('--key-heads'),
  )
  .option(
    '--value-heads <n>',
    'mean-pool the V heads to n, a divisor of their number',
    number('--value-heads'),
  )
  .option(
    '--key-head-dim <size>',
    'n: cache n dimensions of each K head, an even divisor of its size, and absorb the rest into Q; ' +
      "half: cache half of each K head; a linear layer lifts it to Q's head size",
  )
  .option(
    '--kv-group-sharing',
    'copy heads so that K and V have the same number, as other frameworks require',
  )
  .option(
    '--weight-type <type>',
    'quantize the matrices of the layers to i8 or i4, in the form of compressed-tensors',
  )
  .option(
    '--group-size <n>',
    'with --weight-type: elements of a row with one scale, 32, 64 or 128 (default 32)',
    number('--group-size'),
  )
  .option('--json', 'print one JSON object')
  .addHelpText(
    'after',
    `
A checkpoint with pooled or smaller heads is a start for training (as for GQA, arXiv 2305.13245),
not a finished model. A checkpoint with copied heads computes the same logits as the original.
Other files of the checkpoint are copied unchanged. The output is written to OUT.partial-... and
renamed to OUT at the end.`,
  )
  .action(async (input: string, output: string, options) => {
    const { convert } = await import('./convert.js');
    process.exitCode = await convert(input, output, options);
  });

program
  .command('bench')
  .description('run benchmarks: diffqkv bench SUITE ...; diffqkv bench --help lists the suites')
  .argument('[args...]')
  .allowUnknownOption()
  .helpOption(false)
  .action(async (args: string[]) => {
    const { runBench } = await import('../bench/main.js');
    process.exitCode = await runBench(args);
  });

program
  .command('build')
  .description('compile the native module from source')
  .argument('[args...]', 'options of scripts/build-native.js: --clean, --verbose, -DNAME=VALUE')
  .allowUnknownOption()
  .action(async (args: string[]) => {
    const { build } = await import('./build.js');
    process.exitCode = await build(args);
  });

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // EPIPE: the reader of stdout has exited (`| head`). Stop quietly.
  if (error.code === 'EPIPE') process.exit(0);
  error.message = `cannot write to standard output: ${error.message}`;
  process.stderr.write(errorLine(error));
  process.exit(1);
});
process.stderr.on('error', () => {}); // there is no place left to report it

program.parseAsync().catch((error: unknown) => {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode; // 0 for --help and --version, whose text is printed already
    if (error.exitCode === 0) return;
    if (error.code === 'commander.help') return; // no command: commander has printed the help
    error = new CliError('ERR_INVALID_ARGUMENT', error.message.replace(/^error: /, ''));
  }
  process.stderr.write(errorLine(error));
  process.exitCode = 1;
});
