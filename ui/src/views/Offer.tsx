import { offer, takeOffer } from "../notices";

/** A line at the foot of the page that goes by itself, and may offer to undo. */
export const Offer = () => (
  <div class="offer" role="status">
    {offer.value && (
      <p>
        {offer.value.text}
        {offer.value.undo && (
          <button type="button" onClick={takeOffer}>
            Undo
          </button>
        )}
      </p>
    )}
  </div>
);
