/** Every load crosses twice: by a pipe, and by proxy and cache. Afterwards it checks itself. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { across } from '../support/across.ts'
import { real } from '../support/criu.ts'
import { startHost } from '../support/host.ts'
import { type Load, loads } from '../support/loads.ts'
import { shell, temporary } from '../support/run.ts'

const test = suite('real-criu/loads')

async function byPipe(load: Load): Promise<void> {
  const { path, remove } = temporary()
  const target = await startHost()
  const started = await load.start(path)
  try {
    const line = `dump-to-stdout -t ${started.pid} | ${target.enter.join(' ')} restore-from-socket --from -`
    const ran = await shell(line)
    assert.is(ran.code, 0, ran.stderr)
    assert.is(ran.stderr, '')
    await started.gone
    await started.verify(target.outerPid(started.pid))
  } finally {
    started.kill()
    await target.stop()
    remove()
  }
}

function byProxyAndCache(load: Load, criu: string): Promise<void> {
  return across(load, criu, { restored: ({ proxy }) => proxy.says(/sent and sealed by the cache/) })
}

for (const load of loads) {
  if (typeof real === 'string') {
    console.log(`skipped: ${load.name}: ${real}`)
    continue
  }
  const { path, version, objection } = real
  if (objection(load) !== undefined) {
    console.log(`skipped: ${load.name}: ${objection(load)}`)
    continue
  }
  test(`${load.name}, by a pipe, with CRIU ${version}`, () => byPipe(load))
  test(`${load.name}, by proxy and cache, with CRIU ${version}`, () => byProxyAndCache(load, path))
}

test.run()
