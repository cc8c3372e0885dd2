#!/usr/bin/env node
// diffqkv: the command line. Each command is loaded when it is called, so that `build` and `--help` work where the
// native module is not built.
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

program
  .command('generate')
  .description('write text by a model: to stdout as it comes, timings to stderr')
  .option('--model <dir>', 'a checkpoint directory (default: the embedded model)')
  .option('--prompt <text>', 'the prompt (default: standard input)')
  .option('--chat', "give the prompt as a user's message, by the model's chat template")
  .option('--max-tokens <n>', 'at most this many new tokens', number('--max-tokens'), 256)
  .option('--temperature <t>', '0: greedy', number('--temperature'), 0)
  .option('--top-k <n>', 'only the n most likely tokens; 0: all', number('--top-k'), 0)
  .option('--top-p <p>', 'only the most likely tokens that add up to p', number('--top-p'), 1)
  .option(
    '--min-p <p>',
    'only tokens p times as likely as the most likely one',
    number('--min-p'),
    0,
  )
  .option('--repetition-penalty <r>', '1: off', number('--repetition-penalty'), 1)
  .option(
    '--seed <n>',
    'the same seed gives the same text (default: a random one)',
    integer('--seed'),
  )
  .option(
    '--stop <text>',
    'stop at this text; may be given several times',
    (text: string, before: string[]) => [...before, text],
    [],
  )
  .option('--k-type <type>', "of the K cache: f32, f16, bf16, i8 or f8e4m3 (default: the model's)")
  .option('--v-type <type>', 'the same of the V cache')
  .option(
    '--selective-v <k>',
    'fetch only the V rows of the k highest scores of each query head',
    number('--selective-v'),
  )
  .option('--renormalize', 'with --selective-v: let the kept weights add up to 1')
  .option('--device <id>', 'auto, cpu, cuda or cuda:N', 'auto')
  .option('--json', 'print one JSON object at the end instead of text as it comes')
  .action(async (options) => {
    const { generate } = await import('./generate.js');
    process.exitCode = await generate(options);
  });

program
  .command('info')
  .description("the devices; with --model, the model's shapes, memory and KV bytes per token")
  .option('--model <dir>', 'a checkpoint directory')
  .option('--device <id>', 'where to load the model: auto, cpu, cuda or cuda:N', 'auto')
  .option('--json', 'print one JSON object')
  .action(async (options) => {
    const { info } = await import('./info.js');
    process.exitCode = await info(options);
  });

program
  .command('convert')
  .description(
    'make a checkpoint with fewer or smaller K and V heads out of a Llama or Sigma checkpoint',
  )
  .argument('<in>', 'the checkpoint directory; it is only read')
  .argument('<out>', 'the new one: a directory that is not there yet, or is empty')
  .option(
    '--key-heads <n>',
    'mean-pool the K heads to n, which divides their count',
    number('--key-heads'),
  )
  .option(
    '--value-heads <n>',
    'mean-pool the V heads to n, which divides their count',
    number('--value-heads'),
  )
  .option(
    '--key-head-dim <size>',
    "half: cache half of each K head, with a linear lift back to Q's head size",
  )
  .option(
    '--kv-group-sharing',
    'then copy heads until K and V have one count, for frameworks that know only one',
  )
  .option('--json', 'print one JSON object')
  .addHelpText(
    'after',
    `
Pooled and halved checkpoints are where training goes on from (as for GQA, arXiv 2305.13245), not finished models;
copied heads compute what the original does. Files beside the weights are copied as they are. The output is written
under OUT.partial-... and takes its name when it is whole.`,
  )
  .action(async (input: string, output: string, options) => {
    const { convert } = await import('./convert.js');
    process.exitCode = await convert(input, output, options);
  });

program
  .command('bench')
  .description('the benchmarks: diffqkv bench SUITE ...; diffqkv bench --help lists them')
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
  .argument('[args...]', 'for scripts/build-native.js: --clean, --verbose, -DNAME=VALUE')
  .allowUnknownOption()
  .action(async (args: string[]) => {
    const { build } = await import('./build.js');
    process.exitCode = await build(args);
  });

program.parseAsync().catch((error: unknown) => {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode; // 0 for --help and --version, which have printed already
    if (error.exitCode === 0) return;
    if (error.code === 'commander.help') return; // no command: the help is the answer
    error = new CliError('ERR_INVALID_ARGUMENT', error.message.replace(/^error: /, ''));
  }
  process.stderr.write(errorLine(error));
  process.exitCode = 1;
});
