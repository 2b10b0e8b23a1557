/** A relay on loopback between a proxy and its cache: it cuts a connection, or falls silent, after so many bytes. */
import net from 'node:net'

/** What becomes of one connection. */
export interface Plan {
  /** After this many bytes to the cache, or to the proxy. */
  up?: number
  down?: number
  /** Both sockets are reset, or kept and neither read nor written any more. */
  how: 'cut' | 'mute'
}

export interface Relay {
  port: string
  /** Connections that came. */
  readonly links: number
  /** Bytes that went to the cache, over all connections. */
  readonly up: number
  /** What happens to the next connections, one after the other; those after them are left in peace. */
  plan(...plans: Plan[]): void
  /** Every connection, those that are there and those that come, until `plan` is called again. */
  die(how: Plan['how']): void
  close(): void
}

export async function startRelay(target: string): Promise<Relay> {
  let plans: Plan[] = []
  let dead: Plan['how'] | undefined
  let links = 0
  let carried = 0
  const all = new Set<(how: Plan['how']) => void>()

  const server = net.createServer((near) => {
    links++
    const plan = plans.shift()
    const far = net.connect(Number(target), '127.0.0.1')
    let muted = false
    const stop = (how: Plan['how']): void => {
      if (how === 'mute') {
        muted = true
        near.pause()
        far.pause()
      } else {
        near.resetAndDestroy()
        far.resetAndDestroy()
      }
    }
    all.add(stop)
    near.on('close', () => muted || far.destroy())
    far.on('close', () => {
      all.delete(stop)
      if (!muted) near.destroy()
    })
    const pass = (from: net.Socket, to: net.Socket, most: number, count: (bytes: number) => void): void => {
      let passed = 0
      from.on('error', () => {})
      from.on('data', (chunk) => {
        if (muted) return
        const part = chunk.subarray(0, most - passed)
        passed += part.length
        count(part.length)
        if (!to.write(part)) {
          from.pause()
          to.once('drain', () => muted || from.resume())
        }
        if (passed < most) return
        // The bytes before the break arrive.
        if (plan?.how === 'mute') stop('mute')
        else setTimeout(stop, 20, 'cut')
      })
      from.on('end', () => muted || to.end())
    }
    pass(near, far, plan?.up ?? Number.POSITIVE_INFINITY, (bytes) => {
      carried += bytes
    })
    pass(far, near, plan?.down ?? Number.POSITIVE_INFINITY, () => {})
    if (dead !== undefined) stop(dead)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    port: String((server.address() as net.AddressInfo).port),
    get links() {
      return links
    },
    get up() {
      return carried
    },
    plan(...next) {
      plans = next
      dead = undefined
    },
    die(how) {
      dead = how
      for (const stop of all) stop(how)
    },
    close() {
      server.close()
      for (const stop of all) stop('cut')
    },
  }
}
