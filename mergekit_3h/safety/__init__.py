"""The safety merge: weights chosen by losses on safety and domain data, for any host that fills its port."""
