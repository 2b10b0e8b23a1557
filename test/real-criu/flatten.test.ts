/**
 * What flatten makes, restored by the real CRIU. Where this kernel cannot track changed pages a full dump is made into
 * a chain: pages in all layers, below each an older one that must not come back. That CRIU restores it as it is shows
 * that it is a chain.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { splitDump, type Writing } from '../support/chains.ts'
import { type RealCriu, real } from '../support/criu.ts'
import { startCache } from '../support/daemons.ts'
import { startHost } from '../support/host.ts'
import { type Load, loads, patternLoad } from '../support/loads.ts'
import { sendChain } from '../support/rounds.ts'
import { root, run, shell, temporary } from '../support/run.ts'

const test = suite('real-criu/flatten')
const older = join(root, '.criu', 'trixie', 'criu')

/** The images of a dump as a chain, and a copy of what its log was then. */
interface Chain {
  /** Where its last directory is. */
  last: string
  /** Restores from `directory` on a host of its own, and has the copy check itself. */
  restores(criu: string, directory: string, ...options: string[]): Promise<void>
}

async function withChain(load: Load, criu: string, writings: Writing[], body: (chain: Chain) => Promise<void>) {
  const { path, remove } = temporary()
  const started = await load.start(path)
  try {
    mkdirSync(join(path, 'full'))
    const dumped = await run(criu, ['dump', '-t', String(started.pid), '-D', join(path, 'full')])
    assert.is(dumped.code, 0, dumped.stderr)
    await started.gone
    const log = readFileSync(join(path, 'load.log'))
    const last = splitDump(join(path, 'full'), join(path, 'rounds'), writings)
    rmSync(join(path, 'full'), { recursive: true })
    const restores = async (program: string, directory: string, ...options: string[]): Promise<void> => {
      writeFileSync(join(path, 'load.log'), log)
      const host = await startHost()
      try {
        const ran = await shell(`${host.enter.join(' ')} ${program} restore ${options.join(' ')} -d -D ${directory}`)
        assert.is(ran.code, 0, ran.stderr)
        await started.verify(host.outerPid(started.pid))
      } finally {
        await host.stop()
      }
    }
    await body({ last, restores })
  } finally {
    started.kill()
    remove()
  }
}

/** Flattens a chain, and takes it away. */
async function flattened(last: string): Promise<string> {
  const rounds = dirname(last)
  const flat = join(dirname(rounds), 'flat')
  const ran = await run('flatten', ['-D', last, '--to-dir', flat])
  assert.is(ran.code, 0, ran.stderr)
  rmSync(rounds, { recursive: true })
  return flat
}

function tests({ path: criu, version, objection }: RealCriu): void {
  const old = version.startsWith('4.1')
  const own: Writing = old ? '4.1' : '4.2'
  for (const load of [patternLoad(16), loads[1] as Load]) {
    if (objection(load) !== undefined) {
      console.log(`skipped: ${load.name}: ${objection(load)}`)
      continue
    }
    test(`${load.name}, dumped by CRIU ${version}: restored from a chain, and from the same flattened`, () =>
      withChain(load, criu, [own, '4.1', own, 'before flags'], async ({ last, restores }) => {
        await restores(criu, last)
        await restores(criu, await flattened(last))
      }))
    test(`${load.name}, dumped by CRIU ${version}: sent to a cache in rounds, and restored from its memory`, () =>
      withChain(load, criu, [own, '4.1', own, 'before flags'], async ({ last, restores }) => {
        const rounds = dirname(last)
        const target = join(dirname(rounds), 'target')
        const { cache, port } = await startCache(target)
        try {
          await sendChain(
            port,
            'app',
            ['1', '2', '3', '4'].map((round) => join(rounds, round)),
          )
          rmSync(rounds, { recursive: true })
          await restores(criu, target, '--stream')
          await cache.says(/snapshot app served/)
        } finally {
          await cache.stop()
        }
      }))
  }
  if (old || !existsSync(older)) return void console.log('skipped: there is no older CRIU than this one')
  test(`a dump of CRIU ${version}, flattened, is one that CRIU 4.1 restores`, () =>
    withChain(patternLoad(8), criu, [own, own], async ({ last, restores }) => restores(older, await flattened(last))))
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else tests(real)

test.run()
