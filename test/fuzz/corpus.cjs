// The kept inputs of the fuzzers, corpus.tar.gz: a folder for each target.
'use strict';

const { execFileSync } = require('node:child_process');
const { join } = require('node:path');

const archive = join(__dirname, 'corpus.tar.gz');

/** Writes the corpus to a folder that exists. */
function unpackCorpus(folder) {
  execFileSync('tar', ['-xzf', archive, '-C', folder]);
}

/** Replaces the corpus by a folder's contents. The same contents give the same bytes. */
function packCorpus(folder) {
  const same = ['--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner', '--mode=u=rwX,go=rX'];
  execFileSync('tar', ['-cf', archive, ...same, '-I', 'gzip -9n', '-C', folder, '.']);
}

module.exports = { packCorpus, unpackCorpus };
