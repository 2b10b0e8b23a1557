/**
 * The fault matrix, with the real CRIU: after each fault of the link, where is the process, how many copies run, what
 * did every command say, what is left. The rule: one live copy, or a stopped one that is named, and nothing left over.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { real } from '../support/criu.ts'
import { type Matrix, matrix, stall } from '../support/faults.ts'
import { patternLoad } from '../support/loads.ts'
import { run } from '../support/run.ts'

const test = suite('real-criu/faults')

/** The frames by which both ends learn what became of the process. */
const lastFrames = [
  ['the verdict', { at: 'verdict', from: 'source' }],
  ['the answer to the verdict', { at: 'fate', from: 'target' }],
] as const

function faults({ row }: Matrix): void {
  row('no fault', { end: 'moves' })

  for (const at of ['snapshot', 'handOver', 'reserve', 'image', 'data', 'imageEnd', 'snapshotEnd'] as const) {
    row(`the link is cut before ${at}`, { trouble: { at, from: 'source', what: 'cut before' }, end: 'moves' })
  }
  row('the link is cut after snapshotEnd', {
    trouble: { at: 'snapshotEnd', from: 'source', what: 'cut after' },
    end: 'moves',
  })
  for (const at of ['hello', 'reserved', 'got', 'ack', 'sealed', 'ready'] as const) {
    row(`the link is cut before ${at}`, { trouble: { at, from: 'target', what: 'cut before' }, end: 'moves' })
  }
  row('the link is cut before imageEnd and stays so', {
    trouble: { at: 'imageEnd', from: 'source', what: 'cut before', later: 'refuse' },
    end: 'stays',
  })
  row('the link is cut after ready', {
    trouble: { at: 'ready', from: 'target', what: 'cut after' },
    end: 'moves',
  })
  for (const [name, place] of lastFrames) {
    row(`the link is cut before ${name}`, { trouble: { ...place, what: 'cut before' }, end: 'moves' })
  }
  row('the link is cut before the verdict and stays so: the copy is held until it is told by hand', {
    trouble: { at: 'verdict', from: 'source', what: 'cut before', later: 'refuse' },
    async act({ cacheRun }) {
      await cacheRun.says(/is held until its source says/)
    },
    end: 'held',
    async after(scene) {
      const [, id = ''] = await scene.cacheRun.says(/--let-run (\S+),/)
      const told = await run('cache', ['-D', scene.target, '--let-run', id])
      assert.is(told.code, 0, told.stderr)
      await scene.arrived()
    },
    leaves: /\.owed$/,
  })
  row('the link is cut before the verdict, and mended later', {
    trouble: { at: 'verdict', from: 'source', what: 'cut before', later: 'refuse' },
    async act({ cacheRun, relay: { mend } }) {
      await cacheRun.says(/is held until its source says/)
      mend()
    },
    end: 'moves',
  })

  for (const at of ['snapshot', 'handOver', 'reserve', 'image', 'data', 'imageEnd', 'snapshotEnd'] as const) {
    row(`a bit flips in ${at}`, { trouble: { at, from: 'source', what: 'flip' }, end: 'stays' })
  }
  for (const at of ['hello', 'reserved', 'got', 'ack', 'sealed', 'ready'] as const) {
    row(`a bit flips in ${at}`, { trouble: { at, from: 'target', what: 'flip' }, end: 'stays' })
  }
  for (const [name, place] of lastFrames) {
    row(`a bit flips in ${name}`, { trouble: { ...place, what: 'flip' }, end: 'moves' })
  }

  for (const [what, says] of [
    ['cut before', 'the link is cut before'],
    ['flip', 'a bit flips in'],
  ] as const) {
    row(`${says} failed: a dump that fails by itself`, {
      load: patternLoad(8, 'pipe'),
      trouble: { at: 'failed', from: 'source', what },
      end: 'stays',
    })
    row(`${says} refused: the memory of the cache is full`, {
      cache: ['--restore', '--max-memory', '8M'],
      trouble: { at: 'refused', from: 'target', what },
      end: 'stays',
    })
  }

  row('the link is silent before reserved', { trouble: stall('reserved', 'target'), end: 'stays' })
  row('the link is silent in the middle of a dump', { trouble: stall('data'), end: 'stays' })
  // A new link works again.
  for (const at of ['sealed', 'ready'] as const) {
    row(`the link is silent before ${at}`, { trouble: { at, from: 'target', what: 'stall' }, end: 'moves' })
  }
  for (const [name, place] of lastFrames) {
    row(`the link is silent before ${name}`, { trouble: { ...place, what: 'stall' }, end: 'moves' })
  }

  for (let part = 0; part < 20; part++) {
    // Spread over the 29 MiB that cross, and never the same.
    const at = 100 + Math.floor(((part + Math.random()) / 20) * 28 * 2 ** 20)
    row(`the link is cut at a random byte, ${part * 5} to ${part * 5 + 5} % of the way`, {
      trouble: { at, from: 'source', what: 'cut before' },
      end: 'moves',
    })
  }
}

const section = 'The link'
const about = 'One thing goes wrong on the link between the proxy and the cache.'

if (typeof real === 'string') console.log(`skipped: ${real}`)
else matrix(test, { section, about, criu: real.path, version: real.version }, faults)

test.run()
