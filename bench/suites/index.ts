// All suites, in the order in which `bench --quick` runs them.
import type { Suite } from '../suite';
import { attentionSuite } from './attention';
import { ceetSuite } from './ceet';
import { cpuSuite } from './cpu';
import { cudaSuite } from './cuda';
import { kernelsSuite } from './kernels';
import { ketSuite } from './ket';
import { kvTypesSuite } from './kv_types';
import { mlaSuite } from './mla';
import { modelSuite } from './model';
import { selectiveVSuite } from './selective_v';
import { weightTypesSuite } from './weight_types';

export const SUITES: Record<string, Suite> = {
  ket: ketSuite,
  ceet: ceetSuite,
  'selective-v': selectiveVSuite,
  'kv-types': kvTypesSuite,
  attention: attentionSuite,
  kernels: kernelsSuite,
  model: modelSuite,
  mla: mlaSuite,
  'weight-types': weightTypesSuite,
  cpu: cpuSuite,
  cuda: cudaSuite,
};
