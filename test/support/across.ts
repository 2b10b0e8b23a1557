/** One load from one host to another, by a proxy and a cache. */
import * as assert from 'uvu/assert'
import { type Daemons, daemons } from './daemons.ts'
import { startHost } from './host.ts'
import type { Load } from './loads.ts'
import { run, shell, temporary } from './run.ts'

interface Way {
  proxy?: string[]
  cache?: string[]
  /** More options for the dump. */
  dump?(both: Daemons): string[]
  /** Waits until the daemons have said what they must, before the restore. */
  sealed?(both: Daemons): Promise<unknown>
  /** The same, after the restore. */
  restored?(both: Daemons): Promise<unknown>
}

/** Dumps `load` with this criu, restores it on another host, and lets it check itself there. */
export async function across(load: Load, criu: string, way: Way): Promise<void> {
  const { path, remove } = temporary()
  const target = await startHost()
  const { proxy = [], cache = [] } = way
  const both = await daemons({ proxy, cache })
  const started = await load.start(path)
  try {
    const options = ['-t', String(started.pid), '-D', both.source, ...(way.dump?.(both) ?? [])]
    const dumped = await run(criu, ['dump', '--stream', ...options])
    assert.is(dumped.code, 0, dumped.stderr)
    await started.gone
    await way.sealed?.(both)
    const restored = await shell(`${target.enter.join(' ')} ${criu} restore --stream -d -D ${both.target}`)
    assert.is(restored.code, 0, restored.stderr)
    await way.restored?.(both)
    await started.verify(target.outerPid(started.pid))
  } finally {
    started.kill()
    await target.stop()
    await both.stop()
    remove()
  }
}
